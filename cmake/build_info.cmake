# build_info.json: what was built, or what was missing; plugins/library.py reads it.

# `out` is the JSON array of the given strings.
function(sparsespec_json_strings out)
    set(array "[]")
    set(index 0)
    foreach(text IN LISTS ARGN)
        string(REPLACE "\\" "\\\\" text "${text}")
        string(REPLACE "\"" "\\\"" text "${text}")
        string(JSON array SET "${array}" ${index} "\"${text}\"")
        math(EXPR index "${index} + 1")
    endforeach()
    set(${out} "${array}" PARENT_SCOPE)
endfunction()

# Takes `missing`, `tensorrt_version`, `tensorrt_source` and what the CUDA language has set from the scope that calls.
function(sparsespec_write_build_info path)
    sparsespec_json_strings(missing_json ${missing})
    sparsespec_json_strings(architectures_json)
    if(NOT missing)
        sparsespec_json_strings(architectures_json ${CMAKE_CUDA_ARCHITECTURES})
    endif()
    file(CONFIGURE OUTPUT "${path}" CONTENT [[{
  "missing": @missing_json@,
  "cuda_architectures": @architectures_json@,
  "cuda_version": "@CUDAToolkit_VERSION@",
  "tensorrt_version": "@tensorrt_version@",
  "tensorrt_headers": "@tensorrt_source@"
}
]] @ONLY)
endfunction()
