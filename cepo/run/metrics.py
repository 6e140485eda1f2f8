"""Every key of metrics.jsonl with its description: the source of docs/metrics.md and of the dashboard's tooltips.

A key that ends in `*` describes every key with that beginning: `queue/*` describes `queue/rollout_max`. Keys are the
same for all methods; a value that a method does not have is 0 or absent.
"""

from __future__ import annotations

METRICS: dict[str, dict[str, str]] = {
    "The step": {
        "step": "index of the step, from 0",
        "policy_version": "version of the policy that sampled the step's responses; version 0 is the base model",
        "learning_rate": "learning rate of the step's updates",
        "reward/mean": "mean reward of the responses",
        "reward/std": "standard deviation of the rewards",
        "reward/format": "mean of the format term, if `[reward]` enables it",
        "reward/penalty": "mean of the length and repetition penalties, if `[reward]` enables them",
        "reward/environment": "mean of the environments' weighted rewards, if `[reward]` gives them a weight",
        "reward/functions": "mean of the user's reward functions, if `[reward]` names any",
        "accuracy/train": "share of the step's responses whose answer is correct",
        "accuracy/eval": "share of held-out responses that are correct after the step's update (evaluation steps)",
        "accuracy/eval_before": "the same before the first step",
        "accuracy/eval_choice": "the same over the half of the held-out problems that chooses the best policy",
        "accuracy/eval_report": "the same over the other half",
        "accuracy/eval_report_problems": "number of problems in the other half",
        "length/mean": "mean number of tokens that the policy sampled in a response",
        "length/max": "largest number of tokens that the policy sampled in a response",
        "length/truncated_fraction": "share of responses cut at `sampling.max_tokens`",
        "length/empty_fraction": "share of responses without a sampled token",
        "length/turns": "mean number of sampled turns of a response; tokens were given between two turns",
        "outcome/correct": "share of responses that the verifier graded as correct",
        "outcome/wrong": "share with an answer that is wrong",
        "outcome/unparsed": "share without an answer that the verifier could extract",
        "outcome/truncated": "share that was cut before an answer",
        "outcome/timeout": "share whose grading took too long",
        "outcome/grader_error": "share whose grading failed",
        "samples/failed": "number of responses without a verdict; no statistic and no denominator counts them",
        "groups/total": "number of groups of the step",
        "groups/failed": "number of groups that a stage gave up; `failures.jsonl` has the reasons",
        "groups/evidenced": "share of groups that the teacher scored",
        "groups/all_correct": "share of groups in which every response is correct",
        "groups/all_wrong": "share of groups in which no response is correct",
        "groups/zero_spread": "share of groups with equal rewards, whose advantages are zero",
        "groups/single": "share of groups with fewer than two verdicts",
        "source/*": "of each source in `[[data.train]]`: number of groups, accuracy, mean reward, and share of groups "
        "with equal rewards",
        "tokens/generated": "number of sampled tokens",
        "tokens/continued": "number of these that were sampled in follow-up tasks",
        "tokens/given": "number of response tokens that the policy did not sample, such as tool results",
        "tokens/measured": "number of sampled tokens that the teacher scored, counted once per context",
        "tokens/trained": "number of tokens with a gradient",
        "version/rollout": "oldest policy version that a rollout engine proved in the step",
        "version/teacher": "oldest policy version that a teacher proved in the step",
        "queue/*": "largest depth of each stream during the step, sampled once per second",
    },
    "The update": {
        "loss/policy": "loss, averaged over the step's updates",
        "grad_norm": "norm of the gradient before clipping, averaged over the step's updates",
        "updates/skipped": "number of the step's updates, also those of an auxiliary model, that were skipped because "
        "their gradient was not finite",
        "clip/ppo_low": "share of tokens clipped at the lower bound of the ratio (A < 0)",
        "clip/ppo_high": "share of tokens clipped at the upper bound of the ratio (A > 0)",
        "clip/dual": "share of tokens clipped by the dual clip",
        "kl/old_new": "mean log-ratio of the policy before and after the update",
        "kl/reference": "mean divergence from the base model, if it has a coefficient",
        "entropy/sampled": "mean negative log-prob of the sampled tokens, in nats",
        "entropy/mean": "mean entropy of the token distributions in nats, if it has a coefficient",
        "rollout/logp_gap": "mean absolute difference between the log-probs of the rollout engine and of the trainer",
        "rollout/ratio_p*": "quantiles (1, 50, 99 %) of exp(trainer - engine); 1 where both agree",
    },
    "Token credit (RLSD and CEPO; arXiv:2605.19436, Figures 4 and 5)": {
        "credit/lambda": "share of the evidence in the advantage at this step",
        "credit/tokens": "number of tokens that were weighed: both log-probs exist and the advantage is not zero",
        "credit/sequences_fraction": "share of responses with a weighed token",
        "credit/nonfinite_tokens": "number of tokens whose delta was not finite",
        "credit/delta_mean": "mean of delta = log P(numerator context) - log P(denominator context)",
        "credit/delta_mean_*": "the same over tokens of correct or wrong responses, or of positive (`raised`) or "
        "negative (`lowered`) advantage",
        "credit/delta_std": "standard deviation of delta",
        "credit/delta_std_*": "the same over tokens of positive (`raised`) or negative (`lowered`) advantage",
        "credit/delta_pos_fraction": "share of tokens with delta above `dead_band` (0.01 nats); below it is rounding",
        "credit/delta_pos_fraction_*": "the same over tokens of correct or of wrong responses",
        "credit/delta_neg_fraction": "share of tokens with delta below -`dead_band`",
        "credit/delta_neg_fraction_*": "the same over tokens of correct or of wrong responses",
        "credit/delta_zero_fraction": "share of tokens with delta within `dead_band`",
        "credit/delta_p*": "quantiles of delta (5, 25, 50, 75, 95 %)",
        "credit/delta_histogram_*": "share of tokens per bin of delta, `00` to `11`; the bins meet at -8, -4, -2, -1, "
        "-0.5, 0, 0.5, 1, 2, 4 and 8",
        "credit/wrong_direction_fraction": "share of tokens whose delta is beyond `dead_band` and opposite to the "
        "advantage",
        "credit/wrong_direction_fraction_*": "the same for positive (`raised`) or negative (`lowered`) advantage",
        "credit/size_tenth_*": "mean size of delta in each tenth of the responses, `00` the first; 0 within "
        "`dead_band`",
        "credit/size_sure": "mean size of delta of tokens that were sampled with a probability above 0.9",
        "credit/size_fork": "the same for the other tokens, where the policy had a choice",
        "credit/fork_fraction": "share of these other tokens",
        "credit/ruled_out_blamed": "share of wrong responses in which the first token with a probability below 5 % "
        "under r+ is blamed: delta below -`dead_band`; over those that have such a token",
        "credit/answer_share": "CEPO, RLCSD: share of the total size of delta that lies on the final answer, over the "
        "first 16 groups; the rest is on the steps",
        "credit/clip_fraction": "share of weights outside 1 - eps_w and 1 + eps_w",
        "credit/clip_low_fraction": "share of weights below 1 - eps_w",
        "credit/clip_high_fraction": "share of weights above 1 + eps_w",
        "credit/weight_mean": "mean clipped weight",
        "credit/weight_mean_unclipped": "mean weight before clipping",
        "credit/multiplier_mean": "mean factor on the advantage: (1 - lambda) + lambda * clipped weight",
        "credit/advantage_before": "mean absolute advantage without token credit",
        "credit/advantage_after": "mean absolute advantage with token credit",
        "credit/sharper_correct": "CEPO: share of tokens of positive advantage at which CEPO's exponent exceeds "
        "RLSD's by more than `dead_band` (Proposition 1), by the trainer's own log-probs",
        "credit/sharper_wrong": "CEPO: the same for tokens of negative advantage",
        "credit/selected_fraction": "RLCSD: share of tokens whose advantage got an added term",
        "credit/residual_mean": "RLCSD: mean added term over those tokens",
        "hint/rejected_*": "share of responses by the reason of their r-: `asked` (a rejected answer was shown), "
        "`no_rejected`, `no_answer`, `same_as_answer`, `only_self`, `too_few`, `unused`",
        "hint/answer_tokens": "mean number of tokens that the hint r+ adds to the prompt",
        "hint/rejected_tokens": "mean number of tokens that the hint r- adds to the prompt",
        "teacher/behind": "number of steps that the teacher's policy is behind the actor's",
        "teacher/distance": "norm of the difference between the teacher's adapter and the actor's",
    },
    "Methods": {
        "distill/divergence": "OPSD, SDPO, HDPO: mean divergence between student and teacher",
        "distill/teacher_mass": "the teacher's probability of the compared tokens",
        "distill/student_mass": "the student's probability of the compared tokens",
        "distill/tail_mass": "probability outside the compared tokens",
        "distill/evidence_fraction": "share of responses with a teacher distribution",
        "distill/success_group_fraction": "share of groups with a correct response to show to the teacher",
        "distill/ratio_clip_fraction": "share of importance weights at their cap",
        "hdpo/cliff_fraction": "share of prompts that no response answered correctly",
        "hdpo/privileged_success": "share of privileged responses that are correct",
        "hdpo/kept_tokens": "number of tokens that are distilled",
        "clipo/head_loss": "loss of the contrastive head",
        "clipo/anchor_fraction": "share of responses with a positive partner",
        "clipo/loss_*": "mean and standard deviation of the contrastive loss of correct and of wrong responses",
        "clipo/bonus_mean": "mean of the contrastive reward",
        "clipo/bonus_std": "standard deviation of the contrastive reward",
        "clipo/bonus_at_minimum_fraction": "share of contrastive rewards at their minimum",
        "clipo/similarity_embedding_*": "mean cosine of the embeddings of pairs (`correct_wrong`: one of each)",
        "clipo/similarity_hidden_*": "the same for the model's hidden states",
        "critic/loss": "PPO: loss of the critic",
        "critic/grad_norm": "norm of the critic's gradient",
        "critic/explained_variance": "share of the variance of returns that the critic explains",
        "critic/clip_fraction": "share of clipped value updates",
        "critic/value_mean": "mean predicted value",
        "critic/return_mean": "mean return",
        "value/states": "VinePPO, SPO: number of states whose value was estimated from continuations",
        "value/mean": "mean of these values",
        "value/std": "standard deviation of these values",
        "preference/accuracy": "DPO, ctDPO: share of pairs in the right order",
        "preference/margin": "mean difference of the implicit rewards",
        "preference/chosen": "mean implicit reward of the chosen responses",
        "preference/rejected": "mean implicit reward of the rejected responses",
        "estimator/loss_right": "ctDPO: loss per token of the estimator of correct responses, before each update",
        "estimator/loss_wrong": "the same for the estimator of wrong responses",
        "estimator/grad_norm_right": "norm of the gradient of the first estimator",
        "estimator/grad_norm_wrong": "norm of the gradient of the second estimator",
        "estimator/weight_chosen": "mean weight of a token of the chosen responses",
        "estimator/weight_rejected": "mean weight of a token of the rejected responses",
    },
    "Time, in seconds": {
        "time/step_seconds": "the whole step",
        "time/rollout_seconds": "the trainer's wait for the groups of the step",
        "time/teacher_seconds": "scoring time of the teacher, without waiting in its queue",
        "time/teacher_exposed_seconds": "the part of the step in which the trainer waited for the teacher alone",
        "time/train_seconds": "packing, advantages, updates and writing the rollouts",
        "time/old_seconds": "computing the log-probs from before the update, if a step has several updates",
        "time/publish_seconds": "writing and announcing the adapter",
        "time/eval_seconds": "sampling and grading the held-out problems",
        "time/publish_to_first_token_seconds": "from publishing a policy to an engine's first token with it",
    },
}


def describe(key: str) -> str:
    """The description of a key, or an empty string for an unknown key.

    >>> describe("queue/rollout_max")
    'largest depth of each stream during the step, sampled once per second'
    """
    table = {name: text for section in METRICS.values() for name, text in section.items()}
    if key in table:
        return table[key]
    patterns = [name for name in table if name.endswith("*") and key.startswith(name[:-1])]
    return table[max(patterns, key=len)] if patterns else ""
