"""How each rule is recognised: a case ↦ its symptom, or None, `at` the rule's thresholds, see `rules.py`.

Those that take a probe alone are in `probe_symptoms.py`.
"""

from collections.abc import Mapping

import numpy as np

from purejaxppo.diagnosis.case import Case, Symptom, brief, over_rows, span

Limits = Mapping[str, float]


def seen(seeds: np.ndarray, evidence: str, update: int | None = None) -> Symptom | None:
    """None if no seed has it."""
    return Symptom(seeds, evidence, update) if seeds.any() else None


def certain(case: Case) -> np.ndarray:
    """[seeds] Whether discrete actions have become sure: such a policy moves no more, whatever is done."""
    return np.abs(case.median("entropy")) < 0.05 * np.abs(case.metric("entropy")[:, 0])


def failed_seeds(case: Case, at: Limits) -> Symptom | None:
    """Numbers that turned non-finite."""
    alive = case.run.metrics.columns.get("alive")
    failed = case.run.summary["failed_seeds"] if case.run.summary else []
    dead = np.array([seed in {found["seed"] for found in failed} for seed in case.run.seeds])
    if alive is not None and alive.size:
        dead |= alive[:, -1] < 1
    causes = ", ".join(sorted({found["cause"] for found in failed})) or "see the log"
    first = min((found["update"] for found in failed), default=None)
    return seen(dead, f"alive is 0 at the end; not finite: {causes}", first)


def no_episode_ends(case: Case, at: Limits) -> Symptom | None:
    """Not one episode in all of training."""
    none = (np.sum(case.metric("episodes"), axis=1) == 0) & (case.run.env_steps >= at["steps"])
    return seen(none, f"episodes is 0 in all {case.run.env_steps:,} steps of a seed")


def return_never_changes(case: Case, at: Limits) -> Symptom | None:
    """The same return from the first row to the last."""
    spread = over_rows(np.nanstd, case.returns)
    counts = (~np.isnan(case.returns)).sum(axis=1)
    same = (spread <= 1e-6 * np.maximum(np.abs(case.early), 1e-6)) & (counts >= at["rows"])
    return seen(same, f"episode_return is {span(case.early)} in every row")


def policy_does_not_move(case: Case, at: Limits) -> Symptom | None:
    """KL of nothing; where a line search refuses all steps, that is another rule's."""
    kl, accepted = case.median("kl"), np.nan_to_num(case.median("accepted"), nan=1.0)
    return seen((kl < at["kl"]) & (accepted > 0.5) & ~certain(case), f"median kl {span(kl)}")


def one_action(case: Case, at: Limits) -> Symptom | None:
    """No choice from the first update on."""
    share = np.nan if case.probe is None else case.probe.one_valid_action
    if share > at["share"]:
        return seen(case.all(), f"in {share:.0%} of the states that a fresh policy meets, one action is valid")
    entropy = over_rows(np.nanmax, np.abs(case.metric("entropy")))
    return seen(entropy < 1e-6, "entropy is 0 from the first update on")


def line_search_fails(case: Case, at: Limits) -> Symptom | None:
    """Steps that are not taken."""
    accepted = over_rows(np.nanmean, case.metric("accepted"))
    return seen(accepted < at["accepted"], f"accepted: a share of {span(accepted)} of the steps")


def cg_does_not_converge(case: Case, at: Limits) -> Symptom | None:
    """A direction that does not solve its equation."""
    residual = case.median("cg_residual")
    evidence = f"median cg_residual {span(residual)}; cg_iterations = {case.run.settings.get('cg_iterations')}"
    return seen(residual > at["residual"], evidence)


def damping_dominates(case: Case, at: Limits) -> Symptom | None:
    """Most of sᵀ(F + λ)s is λ‖s‖²."""
    norm, kl, damping = case.metric("step_norm"), case.metric("predicted_kl"), case.number("damping")
    if case.run.settings.get("region") == "ball":  # which is not damped
        return None
    damped, curved = damping * norm**2, 2 * np.maximum(kl, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = over_rows(np.nanmedian, np.where(damped + curved > 0, damped / (damped + curved), np.nan))
    evidence = f"damping = {damping:g} makes up {span(100 * share)}% of the step's quadratic form"
    return seen(share > at["share"], evidence)


def steps_too_large(case: Case, at: Limits) -> Symptom | None:
    """KL or clip fraction far too high."""
    kl, clipped = case.median("kl", 0.0, 0.75), case.median("clip_fraction", 0.0, 0.75)
    worst = over_rows(np.nanmax, case.metric("kl"))
    high = (kl > at["kl"]) | (clipped > at["clip_fraction"]) | (worst > at["worst"])
    clip = "" if np.isnan(clipped).all() else f", clip_fraction {span(clipped)}"
    return seen(high, f"median kl {span(kl)}, at most {span(worst)}{clip}")


def steps_too_small(case: Case, at: Limits) -> Symptom | None:
    """KL nearly nil."""
    kl = case.median("kl")
    low = (kl < at["kl"]) & (kl >= at["nil"])
    return seen(low, f"median kl {span(kl)}")


def entropy_collapsed(case: Case, at: Limits) -> Symptom | None:
    """A policy that is certain in the first third of training."""
    entropy = case.metric("entropy")
    first = entropy[:, :1]
    discrete = np.nanmin(entropy, initial=0.0) >= 0
    limit = at["share"] * first if discrete else first - at["nats"] * np.maximum(first, 1.0)
    low = (entropy < limit)[:, : max(1, case.rows // 3)]
    rows = np.flatnonzero(low.any(axis=0))
    where = int(case.run.metrics.update[rows[0]]) if rows.size else None
    return seen(low.any(axis=1) & (first[:, 0] > 0.01), f"entropy {span(first)} → {span(entropy[:, -1])}", where)


def entropy_never_falls(case: Case, at: Limits) -> Symptom | None:
    """As undecided at the end as at the beginning, though the policy moves."""
    first, last = case.metric("entropy")[:, 0], case.median("entropy", 0.8)
    moves = ~(case.median("kl") < at["kl"])
    high = moves & (last > first - at["share"] * np.abs(first))
    one_choice = (first >= 0) & (first < 0.01)
    return seen(high & ~one_choice, f"entropy {span(first)} → {span(last)}")


def stands_still(case: Case, at: Limits) -> Symptom | None:
    """Returns that rose in the first part of a run and no more, while the entropy rises."""
    entropy, known = case.metric("entropy"), ~np.isnan(case.returns)
    if case.rows < at["rows"]:
        return None
    begin, end = (int(at[name] * case.rows) for name in ("begin", "end"))
    before = over_rows(np.nanmean, case.returns[:, begin:end])
    last = case.returns[:, -(case.rows // 5) :]
    at_the_top = over_rows(np.nanmedian, last) >= over_rows(np.nanmax, case.returns) - 1e-3 * np.abs(case.late)
    gained = case.late - case.early
    flat = case.learnt & (case.late - before < at["gain"] * gained) & ~at_the_top & (known.sum(axis=1) > at["rows"])
    middle, late = case.median("entropy", at["begin"], at["end"]), case.median("entropy", 0.8)
    rises = late - middle > at["share"] * np.maximum(np.abs(entropy[:, 0]), 0.5)
    evidence = (
        f"episode_return {span(case.early)} → {span(before)} → {span(case.late)}, entropy {span(middle)} → "
        f"{span(late)}, median kl {span(case.median('kl'))}"
    )
    return seen(flat & rises, evidence, int(case.run.metrics.update[end]))


def returns_ignore_policy(case: Case, at: Limits) -> Symptom | None:
    """The critic is right, the policy moves, and returns stay."""
    kl, explained = case.median("kl"), case.median("explained_variance", 0.5)
    flat = np.abs(case.gain) < at["gain"]  # NaN: nothing is known
    which = (kl > at["kl"]) & (explained > at["explained_variance"]) & flat & (case.rows >= at["rows"])
    evidence = (
        f"episode_return {span(case.early)} → {span(case.late)}, median explained_variance of the second half "
        f"{span(explained)}, median kl {span(kl)}"
    )
    return seen(which, evidence)


def critic_explains_nothing(case: Case, at: Limits) -> Symptom | None:
    """A critic that is no better than a constant."""
    explained = case.median("explained_variance", 0.5)
    low = explained < at["explained_variance"]
    return seen(low, f"median explained_variance of the second half {span(explained)}")


def reward_scale(case: Case, at: Limits) -> Symptom | None:
    """Rewards per step far from one, as learning sees them."""
    if case.is_set("normalize_rewards") or not case.has_critic:
        return None
    per_step = np.abs(over_rows(np.nanmedian, case.returns)) / case.lengths * case.number("reward_scale", 1.0)
    per_step = np.minimum(per_step, case.number("reward_clip", np.inf))
    normal = case.run.settings.get("normalize_advantages") in ("false", "none")
    tiny = (per_step < at["low"]) & (per_step > 0) & normal
    return seen((per_step > at["high"]) | tiny, f"rewards of about {span(per_step)} per step")


def advantage_of_a_constant(case: Case, at: Limits) -> Symptom | None:
    """A surrogate that is nil in nearly all updates, and so is its gradient; with a tiny step, only the first is."""
    loss, gradient = case.metric("policy_loss"), case.median("grad_norm")
    if "accepted" in case.run.metrics.columns:
        return None
    nil = over_rows(np.nanmean, np.where(np.isnan(loss), np.nan, np.abs(loss) < at["loss"]))
    evidence = (
        f"policy_loss is below {at['loss']:g} in {span(100 * nil)}% of the rows, median grad_norm {span(gradient)}"
    )
    return seen((nil > 0.9) & (gradient < at["gradient"]) & ~certain(case), evidence)


def returns_fall(case: Case, at: Limits) -> Symptom | None:
    """Worse from beginning to end."""
    worse = np.nan_to_num(case.gain) < -at["deviations"]
    return seen(worse, f"episode_return {span(case.early)} → {span(case.late)}")


def forgotten(case: Case, at: Limits) -> Symptom | None:
    """What was learnt is lost again."""
    rows, width = [], 5
    for row in case.returns:
        known = row[~np.isnan(row)]
        smooth = np.convolve(known, np.ones(width) / width, "valid") if known.size >= 4 * width else np.array([np.nan])
        rows.append(smooth.max())
    best = np.array(rows)
    lost = (best - case.late) > at["share"] * (best - case.early)
    lost &= (best - case.early) > np.maximum(at["rise"] * np.abs(case.early), at["noise"] * case.noise)
    return seen(
        lost & ~np.isnan(best), f"episode_return {span(case.early)}, at best {span(best)}, late {span(case.late)}"
    )


def seeds_apart(case: Case, at: Limits) -> Symptom | None:
    """A few seeds have come to nothing, and most have learnt."""
    good, change = case.learnt, case.late - case.early
    if len(good) < at["seeds"] or good.mean() < 0.5 or good.all():
        return None
    usual = np.median(change[good])
    behind = ~good & (change < at["share"] * usual)
    return seen(behind, f"they gained {span(change[behind])} where the median of the others is {brief(usual)}")


def evaluation_below_training(case: Case, at: Limits) -> Symptom | None:
    """The final evaluation far below the returns at the end of training."""
    if case.run.summary is None:
        return None
    final = np.array(case.run.summary["eval_return"]["per_seed"])
    below = (case.late - final) > at["share"] * np.abs(case.late - case.early)
    below &= (case.late - final) > 0.1 * np.abs(case.late)
    which = case.learnt & below
    return seen(which, f"evaluated at {span(final[which])}, in training {span(case.late[which])}")


def too_few_episodes(case: Case, at: Limits) -> Symptom | None:
    """Less of an episode in a rollout than learning can use."""
    share = case.number("num_envs") * case.number("num_steps") / case.lengths
    return seen(share < at["episodes"], f"an update sees {span(share)} episodes of its environments")


def short_sighted(case: Case, at: Limits) -> Symptom | None:
    """A discount that ends long before episodes do."""
    gamma = case.number("gamma")
    horizon = 1 / max(1 - gamma, 1e-9)
    low = (horizon < at["steps"]) & (case.lengths > at["ratio"] * horizon)
    return seen(low, f"gamma = {gamma:g} looks {brief(horizon)} steps ahead, and episodes last {span(case.lengths)}")


def time_limit_as_termination(case: Case, at: Limits) -> Symptom | None:
    """Cut by the time limit, with the bootstrap missing."""
    if not case.has_critic:
        return None
    if case.is_set("truncation_as_termination"):
        return seen(case.all(), "truncation_as_termination = true")
    if case.probe and case.probe.ends_at_limit_as_terminated:
        evidence = (
            f"all {case.probe.episodes} episodes of the probe ended after {case.probe.length:g} steps, terminated"
        )
        return seen(case.all(), evidence)
    return None


def annealed_too_soon(case: Case, at: Limits) -> Symptom | None:
    """A learning rate of nothing before learning began."""
    rate = case.metric("learning_rate")
    if case.run.settings.get("anneal_learning_rate") != "true":
        return None
    least = over_rows(np.nanmin, rate)
    evidence = f"learning_rate {span(rate[:, 0])} → {span(least)}, and nothing was learnt"
    return seen(least < at["share"] * rate[:, 0], evidence)


def no_progress(case: Case, at: Limits) -> Symptom | None:
    """Returns at the end as at the beginning."""
    if np.isnan(case.gain).all():
        return None
    return seen(~case.learnt & ~np.isnan(case.gain), f"episode_return {span(case.early)} → {span(case.late)}")
