// What a plugin of this project says about itself; plugin.h turns it into TensorRT's interfaces.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/plugin_binder.h"
#include "common/plugin_signature.h"
#include "common/status.h"

namespace sparsespec {

// One enqueue, after all checks: the tensors of the signature, their types and the sizes that its symbols have.
class Call {
public:
    Call(const Signature& signature, const Binder& bound, const void* const* inputs, void* const* outputs,
         void* workspace)
        : signature_(signature), bound_(bound), inputs_(inputs), outputs_(outputs), workspace_(workspace) {}

    // Null for a tensor that this instance does not have.
    template <typename T>
    const T* read(Input tensor) const {
        return tensor.index == kAbsent ? nullptr : static_cast<const T*>(inputs_[tensor.index]);
    }
    template <typename T>
    T* write(Output tensor) const {
        return tensor.index == kAbsent ? nullptr : static_cast<T*>(outputs_[tensor.index]);
    }
    template <typename T>
    T* update(InOut tensor) const {
        return write<T>(tensor.output);
    }

    void* workspace() const { return workspace_; }
    // 0 for a symbol whose tensors this instance does not have.
    int32_t size(Symbol symbol) const;
    // kFloat32 for a tensor that this instance does not have.
    Dtype dtype(Input tensor) const;

private:
    const Signature& signature_;
    const Binder& bound_;
    const void* const* inputs_;
    void* const* outputs_;
    void* workspace_;
};

// One configured op. Immutable: clones share it, on any thread. Subclasses have a constructor from FieldReader& and a
// `static constexpr const char* kName`.
class Op {
public:
    Op() = default;
    Op(const Op&) = delete;
    Op& operator=(const Op&) = delete;
    virtual ~Op() = default;

    const Signature& signature() const { return signature_; }

    // Bytes; fits every shape.
    virtual size_t workspace_size() const { return 0; }
    // Whether TensorRT is told which outputs update an input in place. They do in any case, and launch only so.
    virtual bool declares_aliases() const { return true; }
    virtual Status launch(const Call& call, cudaStream_t stream) const = 0;

protected:
    Signature signature_;
};

}  // namespace sparsespec
