# One of the libraries. Of CUDA it needs nothing but the driver where it is loaded: the runtime is inside. Of
# TensorRT it uses headers only. What it exports is in cmake/EXPORTS.map, and nothing else is seen: a process may load
# many plugin libraries.
function(sparsespec_add_library name exports tensorrt_include)
    set(exports "${CMAKE_CURRENT_SOURCE_DIR}/cmake/${exports}.map")
    add_library(${name} SHARED ${ARGN})
    set_target_properties(
        ${name}
        PROPERTIES CXX_STANDARD 17
                   CXX_STANDARD_REQUIRED ON
                   CXX_EXTENSIONS OFF
                   CUDA_STANDARD 17
                   CUDA_STANDARD_REQUIRED ON
                   CUDA_EXTENSIONS OFF
                   CXX_VISIBILITY_PRESET hidden
                   CUDA_VISIBILITY_PRESET hidden
                   VISIBILITY_INLINES_HIDDEN ON
                   LINK_DEPENDS "${exports}"
                   LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}")
    target_include_directories(${name} PRIVATE plugins)
    # Kernels and launchers know nothing of TensorRT; without its folder they cannot.
    target_include_directories(${name} SYSTEM PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${tensorrt_include}>")
    target_compile_options(${name} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>")
    target_link_libraries(${name} PRIVATE CUDA::cudart_static)
    target_link_options(${name} PRIVATE "LINKER:--no-undefined" "LINKER:--version-script=${exports}")
    install(TARGETS ${name} LIBRARY DESTINATION sparsespec/plugins)
endfunction()
