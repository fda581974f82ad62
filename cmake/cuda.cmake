# The module yolonas._cuda: built when YOLONAS_CUDA is ON, or AUTO and a CUDA compiler of at least 11.8 works.
# Architectures: -DCMAKE_CUDA_ARCHITECTURES=90 or the environment's CUDAARCHS, else the list below.

set(YOLONAS_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90)  # machine code for each, the newest as PTX too
set(YOLONAS_CUDA_OLDEST_COMPILER 11.8)  # the first that knows all of them (and cudaLaunchKernelEx)

if(NOT YOLONAS_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "YOLONAS_CUDA must be AUTO, ON or OFF, got '${YOLONAS_CUDA}'")
endif()
if(YOLONAS_CUDA STREQUAL "OFF")
  message(STATUS "CUDA module: off (YOLONAS_CUDA=OFF)")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
  set(CMAKE_CUDA_ARCHITECTURES ${YOLONAS_CUDA_ARCHITECTURES})
endif()
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS YOLONAS_CUDA_OLDEST_COMPILER)
    set(YOLONAS_CUDA_REFUSED
        "${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION} is older than ${YOLONAS_CUDA_OLDEST_COMPILER}")
  endif()
else()
  set(YOLONAS_CUDA_REFUSED "no working CUDA compiler found (set CUDACXX or CMAKE_CUDA_COMPILER to nvcc)")
endif()
if(YOLONAS_CUDA_REFUSED)
  if(YOLONAS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "YOLONAS_CUDA=ON: ${YOLONAS_CUDA_REFUSED}")
  endif()
  message(STATUS "CUDA module: not built, ${YOLONAS_CUDA_REFUSED}")
  return()
endif()
message(STATUS "CUDA module: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")

function(yolonas_cuda_options target)
  yolonas_options(${target})
  set_target_properties(${target} PROPERTIES
    CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
    CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
  # As on the CPU: no contraction, so that the twins agree bit for bit; kernels ask for FMA by name.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false -Xcompiler=-Wall,-Wextra,-ffp-contract=off>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${YOLONAS_WERROR}>>:-Werror=all-warnings -Xcompiler=-Werror>)
endfunction()

file(GLOB YOLONAS_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cpp csrc/cuda/*.cu csrc/bindings/cuda_*.cpp)
pybind11_add_module(_cuda MODULE NO_EXTRAS
  csrc/bindings/module_cuda.cpp csrc/bindings/tensor_arg.cpp csrc/bindings/graph_arg.cpp ${YOLONAS_CUDA_SOURCES})
yolonas_cuda_options(_cuda)
# Hopper has instructions of its own, in code for sm_90a that runs there alone; CUDA 12.0 is the first that knows them.
if("${CMAKE_CUDA_ARCHITECTURES}" MATCHES "(^|;)(90|all|native)" AND
   CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.0)
  file(GLOB YOLONAS_HOPPER_SOURCES CONFIGURE_DEPENDS csrc/cuda/hopper/*.cu)
  add_library(yolonas_hopper OBJECT ${YOLONAS_HOPPER_SOURCES})
  yolonas_cuda_options(yolonas_hopper)
  set_target_properties(yolonas_hopper PROPERTIES CUDA_ARCHITECTURES 90a-real)
  target_compile_definitions(_cuda PRIVATE YOLONAS_HOPPER)
  target_link_libraries(_cuda PRIVATE yolonas_hopper)
endif()
# The static runtime stays private: torch brings another copy of it into the same process.
target_link_options(_cuda PRIVATE -Wl,--exclude-libs,ALL)
target_link_libraries(_cuda PRIVATE yolonas_core Threads::Threads)
install(TARGETS _cuda LIBRARY DESTINATION yolonas)
