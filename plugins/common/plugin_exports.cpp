// The two functions by which IPluginRegistry::loadLibrary finds the plugins; the library exports nothing else.
#include <NvInferRuntime.h>

#include <array>
#include <cstdint>

#include "common/plugin_creator.h"
#include "common/plugin_log.h"

#define SPARSESPEC_EXPORT extern "C" __attribute__((visibility("default")))

SPARSESPEC_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    sparsespec::set_logger_finder(finder);
}

SPARSESPEC_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& num_creators) {
    using nvinfer1::IPluginCreatorInterface;
    IPluginCreatorInterface* const* found = nullptr;
    num_creators = 0;
    sparsespec::guarded("getCreators", [&] {
        static const std::array creators = {sparsespec::pillar_plan_creator(),   sparsespec::pillar_attention_creator(),
                                            sparsespec::pillar_select_creator(), sparsespec::add_rms_norm_creator(),
                                            sparsespec::silu_mul_creator(),      sparsespec::step_rows_creator(),
                                            sparsespec::sample_rows_creator(),   sparsespec::accept_drafts_creator()};
        num_creators = static_cast<int32_t>(creators.size());
        found = creators.data();
        return sparsespec::Status{};
    });
    return found;
}
