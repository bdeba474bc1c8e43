# What somebody may set, with -D (pip: -C cmake.define.NAME=VALUE) or else as an environment variable of the same name.

set(SPARSESPEC_PLUGINS "" CACHE STRING
    "auto (the default): build the plugins where possible; require: fail where it is not; off: do not build them")
set(SPARSESPEC_CUDA_ARCHITECTURES "" CACHE STRING
    "As CMAKE_CUDA_ARCHITECTURES, such as 90a; default: those of 80, 89, 90a, 100a and 120a that nvcc knows")
set(TENSORRT_ROOT "" CACHE STRING "Folder of a TensorRT installation: headers are in include/ below it")
set(SPARSESPEC_FETCH_TENSORRT_HEADERS "" CACHE STRING
    "ON (the default): get TensorRT's headers from PyPI where none are found; OFF: do not")
set(SPARSESPEC_TEST_PLUGINS "" CACHE STRING
    "ON: build the plugins that the tests run as well; OFF (the default): do not")

# The value of setting `name`. It is asked for anew each time: a build folder that is kept follows the environment.
function(sparsespec_setting out name default)
    if(NOT "${${name}}" STREQUAL "")
        set(${out} "${${name}}" PARENT_SCOPE)
    elseif(NOT "$ENV{${name}}" STREQUAL "")
        set(${out} "$ENV{${name}}" PARENT_SCOPE)
    else()
        set(${out} "${default}" PARENT_SCOPE)
    endif()
endfunction()
