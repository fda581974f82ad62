// A stand-in for CUDA's header that runs kernels on the CPU, one after the other, for tests on machines without a GPU.
// It has what csrc/cuda uses and no more. It checks indices, arithmetic, that barriers and collectives are met by all
// threads they are for, and, in several orders of threads and of a graph's nodes, that none is missing; it says nothing
// about memory spaces or speed.
//
// Environment: YOLONAS_EMULATOR_ORDER=forward|backward|random:<seed> of blocks and threads,
// YOLONAS_EMULATOR_GRAPH=forward|backward|random:<seed> of the nodes of a graph, YOLONAS_EMULATOR_ARCH=90 (ten times
// the compute capability), YOLONAS_EMULATOR_MEMORY=<bytes> of the device.
#pragma once

#define YOLONAS_CUDA_EMULATOR 1

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __shared__ static  // blocks run one at a time; keeps its values from block to block
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))

#include "device_functions.h"
#include "fibers.h"
#include "host_runtime.h"
