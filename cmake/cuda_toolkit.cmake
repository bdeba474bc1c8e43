# The C++ and CUDA compilers and what they compile for.

include(CheckLanguage)

set(SPARSESPEC_MIN_CUDA 12.4)

# A failed search is not remembered: the build folder may be kept, and what was missing be there the next time.
foreach(language CXX CUDA)
    if(NOT CMAKE_${language}_COMPILER)
        unset(CMAKE_${language}_COMPILER CACHE)
        unset(CMAKE_${language}_COMPILER)
    endif()
endforeach()

# CMake alone would look on PATH only, and take clang where it finds no nvcc.
macro(sparsespec_find_nvcc)
    if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
        find_program(nvcc nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin NO_CACHE)
        if(nvcc)
            set(ENV{CUDACXX} "${nvcc}")
        endif()
    endif()
    if(DEFINED CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
        check_language(CUDA)
    endif()
endmacro()

# The architectures to compile for. Those that end in `a` run on one generation alone, so their PTX would serve nobody;
# the PTX of 80 is for the devices that none of the others is for.
function(sparsespec_cuda_architectures out)
    sparsespec_setting(wanted SPARSESPEC_CUDA_ARCHITECTURES "")
    if(wanted STREQUAL "")
        execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch OUTPUT_VARIABLE known)
        foreach(arch 80 89-real 90a 100a 120a)
            string(REGEX MATCH "^[0-9]+" number ${arch})
            if(known MATCHES "compute_${number}[^0-9]")
                list(APPEND wanted ${arch})
            endif()
        endforeach()
    endif()
    string(REGEX REPLACE "[ ,]+" ";" wanted "${wanted}")
    foreach(arch IN LISTS wanted)
        string(REGEX MATCH "^[0-9]+" number "${arch}")
        if(NOT arch MATCHES "^[0-9]+[af]?(-real|-virtual)?$" OR number LESS 80)
            message(FATAL_ERROR "SPARSESPEC_CUDA_ARCHITECTURES holds \"${arch}\", expected 80 or newer, such as 80, 89-real or 90a")
        endif()
    endforeach()
    list(TRANSFORM wanted APPEND "-real" REGEX "^[0-9]+a$")
    set(${out} "${wanted}" PARENT_SCOPE)
endfunction()

# Enables C++ and CUDA, or adds to `missing`. A macro: languages are enabled for the scope that asks.
macro(sparsespec_enable_cuda)
    check_language(CXX)
    if(NOT CMAKE_CXX_COMPILER)
        list(APPEND missing "a C++17 compiler that works: install one, or name it in CXX")
    else()
        enable_language(CXX)
        sparsespec_find_nvcc()
        if(NOT CMAKE_CUDA_COMPILER)
            list(APPEND missing "nvcc, one that works with the C++ compiler ${CMAKE_CXX_COMPILER}: install the CUDA \
toolkit ${SPARSESPEC_MIN_CUDA} or newer, and have nvcc on PATH or name it in CUDACXX")
        else()
            sparsespec_cuda_architectures(CMAKE_CUDA_ARCHITECTURES)
            enable_language(CUDA)
            find_package(CUDAToolkit REQUIRED)
            if(CUDAToolkit_VERSION VERSION_LESS SPARSESPEC_MIN_CUDA)
                list(APPEND missing "a newer nvcc: ${CMAKE_CUDA_COMPILER} is of CUDA ${CUDAToolkit_VERSION}, and \
${SPARSESPEC_MIN_CUDA} or newer is needed")
            endif()
        endif()
    endif()
endmacro()
