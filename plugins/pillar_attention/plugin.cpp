// PillarAttention as a TensorRT plugin.
#include "common/plugin_creator.h"
#include "common/plugin_step.h"
#include "pillar_attention/params.h"

namespace sparsespec {
namespace {

// The fields, as far as kernels know them; all else is 0.
PillarAttentionParams read_constants(FieldReader& fields) {
    PillarAttentionParams params{};
    read_heads(fields, params);
    params.page_size = fields.required("page_size", {16, 32, 64});
    params.rms_norm_eps = fields.positive("rms_norm_eps", 1e-6F);
    params.score_planes = fields.choice<ScorePlanes>("score_planes", {{"none", ScorePlanes::kNone},
                                                                      {"mean", ScorePlanes::kMean},
                                                                      {"diagonal", ScorePlanes::kDiagonal},
                                                                      {"rows", ScorePlanes::kRows}});
    params.score_normalizer = fields.choice<ScoreNormalizer>(
        "score_normalizer", {{"draft", ScoreNormalizer::kDraft}, {"exact", ScoreNormalizer::kExact}});
    return params;
}

Range num_planes(ScorePlanes planes) {
    switch (planes) {
        case ScorePlanes::kDiagonal:
            return {2, 2};
        case ScorePlanes::kRows:
            return {1, kMaxBlockRows};
        default:
            return {1, 1};
    }
}

class PillarAttention final : public Op {
public:
    static constexpr const char* kName = "PillarAttention";

    explicit PillarAttention(FieldReader& fields)
        : constants_(read_constants(fields)),
          pool_type_(fields.choice<ElementType>("kv_cache_dtype",
                                                {{"auto", ElementType::kModel}, {"fp8", ElementType::kFp8}})),
          has_qk_norm_(fields.flag("qk_norm", false)),
          aliased_io_(fields.flag("aliased_io", true)) {
        if (constants_.score_planes != ScorePlanes::kNone) {
            declare_scores();
        }
        if (pool_type_ == ElementType::kFp8) {
            kv_scale_ = signature_.input("kv_scale", ElementType::kFloat32, {2, num_kv_heads_});
        }
        if (has_qk_norm_) {
            q_norm_ = signature_.input("q_norm", ElementType::kModel, {head_dim_});
            k_norm_ = signature_.input("k_norm", ElementType::kModel, {head_dim_});
        }
    }

    size_t workspace_size() const override {
        return pillar_attention_workspace_size(constants_.num_heads, constants_.num_kv_heads, constants_.head_dim);
    }

    bool declares_aliases() const override { return aliased_io_; }

    Status launch(const Call& call, cudaStream_t stream) const override {
        PillarAttentionParams params = constants_;
        fill_sizes(call, params);
        fill_tensors(call, params);
        return launch_pillar_attention(params, stream);
    }

private:
    void declare_scores() {
        const Range planes = num_planes(constants_.score_planes);
        planes_ = signature_.symbol("planes", planes.least, planes.most);
        score_index_ = signature_.input("score_index", ElementType::kInt32, {batch_});
        scores_ = signature_.in_out("scores", ElementType::kScore,
                                    {signature_.symbol("max_scored"), planes_, num_kv_heads_, max_positions_});
    }

    void fill_sizes(const Call& call, PillarAttentionParams& params) const {
        params.dtype = call.dtype(qkv_);
        params.kv_dtype = call.dtype(kv_pool_.input);
        params.score_dtype = call.dtype(scores_.input);
        params.max_pages = call.size(max_pages_);
        params.max_budget = call.size(max_budget_);
        params.max_lookups = call.size(max_lookups_);
        params.max_draft_len = call.size(max_draft_len_);
        params.num_planes = call.size(planes_);
        params.max_positions = call.size(max_positions_);
        params.num_rows = call.size(num_rows_);
        params.num_pages = call.size(num_pages_);
    }

    void fill_tensors(const Call& call, PillarAttentionParams& params) const {
        params.step = step_.read(call, num_lookups_);
        params.qkv = call.read<void>(qkv_);
        params.q_norm = call.read<void>(q_norm_);
        params.k_norm = call.read<void>(k_norm_);
        params.kv_pool = call.update<void>(kv_pool_);
        params.kv_scale = call.read<float>(kv_scale_);
        params.draft_lse = call.update<float>(draft_lse_);
        params.pillars = call.read<int32_t>(pillars_);
        params.score_index = call.read<int32_t>(score_index_);
        params.lookups = call.read<int32_t>(lookups_);
        params.page_table = call.read<int32_t>(page_table_);
        params.rope_table = call.read<float>(rope_table_);
        params.scores = call.update<void>(scores_);
        // Not an output: its counters count up during the launch and end where they began.
        params.plan = const_cast<int32_t*>(call.read<int32_t>(plan_));
        params.output = call.write<void>(output_);
        params.workspace = call.workspace();
    }

    const PillarAttentionParams constants_;
    const ElementType pool_type_;
    const bool has_qk_norm_;
    const bool aliased_io_;
    const int64_t num_heads_ = constants_.num_heads;
    const int64_t num_kv_heads_ = constants_.num_kv_heads;
    const int64_t head_dim_ = constants_.head_dim;
    const int64_t page_size_ = constants_.page_size;

    const Symbol num_rows_ = signature_.symbol("num_rows");
    const Symbol num_pages_ = signature_.symbol("num_pages");
    const Symbol batch_ = planned_batch(signature_);
    const Symbol max_draft_len_ = signature_.symbol("max_draft_len", 1);
    const Symbol max_budget_ = signature_.symbol("max_budget");
    const Symbol max_lookups_ = signature_.symbol("max_lookups");
    const Symbol max_pages_ = signature_.symbol("max_pages");
    const Symbol max_positions_ = signature_.symbol("max_positions");
    Symbol planes_{kAbsent};

    const Output output_ = signature_.output("output", ElementType::kModel, {num_rows_, num_heads_ * head_dim_});

    // In the order of the plugin's inputs, and of the outputs that update them.
    const Input qkv_ =
        signature_.input("qkv", ElementType::kModel, {num_rows_, (num_heads_ + 2 * num_kv_heads_) * head_dim_});
    const InOut kv_pool_ =
        signature_.in_out("kv_pool", pool_type_, {num_pages_, 2, num_kv_heads_, page_size_, head_dim_});
    const InOut draft_lse_ =
        signature_.in_out("draft_lse", ElementType::kFloat32, {batch_, max_draft_len_, num_heads_});
    const Input pillars_ = signature_.input("pillars", ElementType::kInt32, {batch_, num_kv_heads_, max_budget_});
    const StepTensors step_{signature_, batch_};
    const Input lookups_ = signature_.input("lookups", ElementType::kInt32, {batch_, max_lookups_});
    const Input num_lookups_ = signature_.input("num_lookups", ElementType::kInt32, {batch_});
    const Input page_table_ = signature_.input("page_table", ElementType::kInt32, {batch_, max_pages_});
    const Input rope_table_ = signature_.input("rope_table", ElementType::kTable, {max_positions_, head_dim_});
    const Input plan_ = signature_.input("plan", ElementType::kPlan, {batch_ + kPlanHead});

    // Not in every instance.
    Input score_index_;
    InOut scores_;
    Input kv_scale_;
    Input q_norm_;
    Input k_norm_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface* pillar_attention_creator() {
    static auto* const creator = new PluginCreator<PillarAttention>();
    return creator;
}

}  // namespace sparsespec
