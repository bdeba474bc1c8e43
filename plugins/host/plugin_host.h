/* Runs the IPluginV3 plugins of any plugin library without TensorRT: what TensorRT asks a plugin, as plain C.
 *
 * A function that returns int32_t returns 0, the plugin's own code, or a negative code of the host; then
 * sparsespec_host_last_error() tells the calling thread why. Handles may be used from any thread, each by one at a
 * time. What a handle gives out lives as long as the handle. Libraries are never closed: a library that launched
 * kernels cannot be.
 */
#ifndef SPARSESPEC_PLUGIN_HOST_H
#define SPARSESPEC_PLUGIN_HOST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPARSESPEC_HOST_API __attribute__((visibility("default")))

enum {
    SPARSESPEC_HOST_MAX_DIMS = 8,
    SPARSESPEC_HOST_FAILED = -1, /* wrong argument, no library, a plugin without a capability ... */
    SPARSESPEC_HOST_REFUSED = -2 /* the plugin or its creator answered with a null pointer */
};

typedef struct SparsespecLibrary SparsespecLibrary;
typedef struct SparsespecPlugin SparsespecPlugin;
typedef struct SparsespecLaunch SparsespecLaunch;

/* type: nvinfer1::DataType; format: nvinfer1::TensorFormat, 0 is linear. */
typedef struct {
    int32_t type;
    int32_t format;
    int32_t rank;
    int64_t sizes[SPARSESPEC_HOST_MAX_DIMS];
} SparsespecTensor;

/* type: nvinfer1::PluginFieldType. */
typedef struct {
    const char* name;
    const void* data;
    int32_t type;
    int32_t length;
} SparsespecField;

/* All tensors of one plugin: inputs, then outputs. */
typedef struct {
    const SparsespecTensor* tensors;
    int32_t num_inputs;
    int32_t num_outputs;
} SparsespecTensors;

/* What went wrong in this thread's last call, with all that the plugin logged; "" after a success. */
SPARSESPEC_HOST_API const char* sparsespec_host_last_error(void);

SPARSESPEC_HOST_API int32_t sparsespec_host_open(const char* path, SparsespecLibrary** library);
SPARSESPEC_HOST_API int32_t sparsespec_host_num_creators(const SparsespecLibrary* library);
/* name, version and namespace of a creator; null for an index out of range. */
SPARSESPEC_HOST_API const char* sparsespec_host_creator_name(const SparsespecLibrary* library, int32_t creator);
SPARSESPEC_HOST_API const char* sparsespec_host_creator_version(const SparsespecLibrary* library, int32_t creator);
SPARSESPEC_HOST_API const char* sparsespec_host_creator_namespace(const SparsespecLibrary* library, int32_t creator);
/* Up to `capacity` fields that the creator knows; returns how many there are. */
SPARSESPEC_HOST_API int32_t sparsespec_host_creator_fields(const SparsespecLibrary* library, int32_t creator,
                                                           SparsespecField* fields, int32_t capacity);

/* phase: 0 to build an engine, 1 to run one. */
SPARSESPEC_HOST_API int32_t sparsespec_host_create(const SparsespecLibrary* library, int32_t creator,
                                                   const SparsespecField* fields, int32_t num_fields, int32_t phase,
                                                   SparsespecPlugin** plugin);
SPARSESPEC_HOST_API void sparsespec_host_destroy(SparsespecPlugin* plugin);
SPARSESPEC_HOST_API int32_t sparsespec_host_clone(SparsespecPlugin* plugin, SparsespecPlugin** copy);
/* with_context: 0 passes a null IPluginResourceContext. */
SPARSESPEC_HOST_API int32_t sparsespec_host_attach(SparsespecPlugin* plugin, int32_t with_context,
                                                   SparsespecPlugin** attached);

/* "name version namespace", each followed by a line feed. */
SPARSESPEC_HOST_API const char* sparsespec_host_identity(SparsespecPlugin* plugin);
/* Up to `capacity` fields to serialise; returns how many there are. */
SPARSESPEC_HOST_API int32_t sparsespec_host_serialise(SparsespecPlugin* plugin, SparsespecField* fields,
                                                      int32_t capacity);
SPARSESPEC_HOST_API int32_t sparsespec_host_num_outputs(SparsespecPlugin* plugin);
/* -1 for an output that is memory of its own. */
SPARSESPEC_HOST_API int32_t sparsespec_host_aliased_input(SparsespecPlugin* plugin, int32_t output);
/* types: inputs' are read, outputs' are written behind them. */
SPARSESPEC_HOST_API int32_t sparsespec_host_output_types(SparsespecPlugin* plugin, int32_t* types, int32_t num_inputs,
                                                         int32_t num_outputs);
/* Ranks and sizes of the inputs are read, those of the outputs written behind them. symbolic: the plugin sees no input
 * size as a constant, only expressions. */
SPARSESPEC_HOST_API int32_t sparsespec_host_output_shapes(SparsespecPlugin* plugin, SparsespecTensor* tensors,
                                                          int32_t num_inputs, int32_t num_outputs, int32_t symbolic);
/* 1 or 0, or a negative code. What lies beyond `position` is not shown to the plugin. */
SPARSESPEC_HOST_API int32_t sparsespec_host_supports(SparsespecPlugin* plugin, int32_t position,
                                                     const SparsespecTensors* tensors);
SPARSESPEC_HOST_API int32_t sparsespec_host_configure(SparsespecPlugin* plugin, const SparsespecTensors* tensors);
/* Bytes, or a negative code. */
SPARSESPEC_HOST_API int64_t sparsespec_host_workspace_size(SparsespecPlugin* plugin, const SparsespecTensors* tensors);
SPARSESPEC_HOST_API int32_t sparsespec_host_on_shape_change(SparsespecPlugin* plugin, const SparsespecTensors* tensors);

/* Everything about a launch but its memory, ready to be used many times. workspace_size: bytes that the plugin asked
 * for in the build phase. */
SPARSESPEC_HOST_API int32_t sparsespec_host_prepare(SparsespecPlugin* plugin, const SparsespecTensors* tensors,
                                                    int64_t workspace_size, SparsespecLaunch** launch);
SPARSESPEC_HOST_API void sparsespec_host_discard(SparsespecLaunch* launch);
/* memory: inputs, then outputs. workspace_size: bytes at `workspace`; fewer than the launch needs are refused. The
 * plugin checks whether the memory fits, and hears of new shapes only by the descriptions: call
 * sparsespec_host_on_shape_change() first, as TensorRT does. */
SPARSESPEC_HOST_API int32_t sparsespec_host_enqueue(const SparsespecLaunch* launch, void* const* memory,
                                                    void* workspace, int64_t workspace_size, void* stream);

#ifdef __cplusplus
}
#endif

#endif
