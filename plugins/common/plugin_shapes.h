// Output shapes as TensorRT's expressions, from a signature and the expressions of the inputs' dimensions.
#pragma once

#include <NvInferRuntime.h>

#include "common/plugin_signature.h"
#include "common/status.h"

namespace sparsespec {

// inputs and outputs: one for each of the signature's. Checks ranks, and sizes as far as they are constants.
Status write_output_shapes(const Signature& signature, const nvinfer1::DimsExprs* inputs, nvinfer1::DimsExprs* outputs,
                           nvinfer1::IExprBuilder& builder);

}  // namespace sparsespec
