# Flags shared by all of our C++, and the one function that gives a file flags of its own.

function(yolonas_options target)
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
  # No -ffast-math anywhere. Without contraction a * b + c means the same in every file; kernels ask for FMA by name.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -ffp-contract=off>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${YOLONAS_WERROR}>>:-Werror>)
  if(YOLONAS_SANITIZE)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${YOLONAS_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer>)
    target_link_options(${target} PRIVATE -fsanitize=${YOLONAS_SANITIZE})
  endif()
endfunction()

# One object library per instruction set, from csrc/cpu/<isa>/*.cpp: only these files get its flags, and never LTO.
function(yolonas_add_isa isa flags)
  file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/cpu/${isa}/*.cpp")
  add_library(yolonas_${isa} OBJECT ${sources})
  yolonas_options(yolonas_${isa})
  set_target_properties(yolonas_${isa} PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)
  target_compile_options(yolonas_${isa} PRIVATE ${flags})
  if(NOT isa STREQUAL "generic")
    string(TOUPPER "${isa}" upper)
    target_compile_definitions(yolonas_cpu PRIVATE YOLONAS_HAVE_${upper})
  endif()
  set(YOLONAS_ISA_TARGETS ${YOLONAS_ISA_TARGETS} yolonas_${isa} PARENT_SCOPE)
endfunction()
