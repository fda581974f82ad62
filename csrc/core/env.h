// The only reader of YOLONAS_* environment variables on the native side.
#pragma once

#include <string>

namespace yolonas {

// Empty if unset.
std::string env_cpu_isa();      // YOLONAS_CPU_ISA: force a CPU variant by name
std::string env_num_threads();  // YOLONAS_NUM_THREADS, else OMP_NUM_THREADS
bool env_cuda_sync();           // YOLONAS_CUDA_SYNC: set and not "0", wait for every kernel after its launch
bool env_cuda_graph();          // YOLONAS_CUDA_GRAPH: unless "0", networks run as captured graphs
bool env_cuda_overlap();        // YOLONAS_CUDA_OVERLAP: unless "0", a kernel may begin while the one before it ends

}  // namespace yolonas
