"""Finite MDPs solved exactly: what the package's sampled quantities estimate, and the bounds that it stands on.

S states, A actions; a policy is a table π [S, A] whose rows sum to 1, or a map θ [P] ↦ π where parameters matter.
η(π) = E Σ_t γᵗ r_t is its expected return, d_π(s) = (1-γ) Σ_t γᵗ P(s_t = s) its visitation, which sums to 1. All
functions are pure, take one MDP, and may be jitted and vmapped (those with loops are, lest each call compiles them
again); bounds and identities are meant in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PolicyMap = Callable[[jax.Array], jax.Array]  # θ [P] ↦ π [S, A]


class MDP(NamedTuple):
    """A discounted Markov decision process without an end; a state that leads to itself for nothing is one."""

    transition: jax.Array  # [S, A, S] P(s'|s, a)
    reward: jax.Array  # [S, A] mean reward
    start: jax.Array  # [S] P(s_0 = s)
    gamma: jax.Array | float  # [] discount, below 1


def random_mdp(key: jax.Array, num_states: int, num_actions: int, gamma: jax.Array | float) -> MDP:
    """Transitions softmax(2 z) and start softmax(z), z ~ N(0, 1): some steps are likely, none is impossible."""
    transition_key, reward_key, start_key = jax.random.split(key, 3)
    shape = (num_states, num_actions)
    return MDP(
        jax.nn.softmax(2.0 * jax.random.normal(transition_key, (*shape, num_states))),
        jax.random.normal(reward_key, shape),
        jax.nn.softmax(jax.random.normal(start_key, (num_states,))),
        jnp.asarray(gamma),
    )


def state_values(mdp: MDP, policy: jax.Array) -> jax.Array:
    """V = (I - γ P_π)⁻¹ r_π, [S] (Sutton and Barto, 2018, eq. 4.4)."""
    reward = jnp.sum(policy * mdp.reward, axis=1)
    return _solve(_one_minus_discounted(mdp, policy), reward)


def action_values(mdp: MDP, policy: jax.Array) -> jax.Array:
    """Q(s, a) = r(s, a) + γ Σ_s' P(s'|s, a) V(s'), [S, A]."""
    return mdp.reward + mdp.gamma * mdp.transition @ state_values(mdp, policy)


def advantages(mdp: MDP, policy: jax.Array) -> jax.Array:
    """A(s, a) = Q(s, a) - V(s), [S, A]; its mean under π is 0 in every state."""
    return action_values(mdp, policy) - state_values(mdp, policy)[:, None]


def expected_gae(mdp: MDP, policy: jax.Array, values: jax.Array, gae_lambda: jax.Array | float) -> jax.Array:
    """E[Â | s, a] of GAE(λ) with a critic `values` [S], right or wrong: [S, A] (arXiv:1506.02438, eq. 16).

    g(s, a) = δ(s, a) + γλ Σ_s' P(s'|s, a) u(s'), where δ = r + γ P V̂ - V̂ and u = Σ_a π g. It is A where V̂ = V, for
    every λ; for λ = 1 it is Q - V̂.
    """
    delta = mdp.reward + mdp.gamma * mdp.transition @ values - values[:, None]
    later = mdp._replace(reward=delta, gamma=mdp.gamma * gae_lambda)
    return action_values(later, policy)


def expected_return(mdp: MDP, policy: jax.Array) -> jax.Array:
    """η(π) = Σ_s P(s_0 = s) V(s), scalar."""
    return mdp.start @ state_values(mdp, policy)


def visitation(mdp: MDP, policy: jax.Array) -> jax.Array:
    """d_π = (1 - γ) (I - γ P_πᵀ)⁻¹ P(s_0), [S], a distribution."""
    return (1.0 - mdp.gamma) * _solve(_one_minus_discounted(mdp, policy).T, mdp.start)


@jax.jit
def optimal_policy(mdp: MDP) -> jax.Array:
    """A deterministic π* [S, A], by policy iteration (Howard, 1960) from the uniform policy, until it is stable."""
    eps = float(np.finfo(mdp.reward.dtype).eps)
    rounding = jnp.maximum(1e-9, 64.0 * eps / (1.0 - mdp.gamma))

    def improve(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        policy, _ = carry
        a = advantages(mdp, policy)
        better = jnp.max(a, axis=1) > rounding * (1.0 + jnp.max(jnp.abs(a)))
        new = jnp.where(better[:, None], greedy_policy(mdp, policy), policy)
        return new, jnp.any(new != policy)

    start = greedy_policy(mdp, jnp.full_like(mdp.reward, 1.0 / mdp.reward.shape[1]))
    return jax.lax.while_loop(lambda carry: carry[1], improve, (start, jnp.ones((), bool)))[0]


def greedy_policy(mdp: MDP, policy: jax.Array) -> jax.Array:
    """argmax_a A_π(s, a) with probability 1, [S, A]."""
    values = action_values(mdp, policy)
    return jax.nn.one_hot(jnp.argmax(values, axis=1), values.shape[1], dtype=values.dtype)


def policy_advantage(mdp: MDP, policy: jax.Array, new: jax.Array, states: jax.Array) -> jax.Array:
    """Σ_s states(s) Σ_a π̃(a|s) A_π(s, a), scalar, for a distribution `states` [S]."""
    return states @ jnp.sum(new * advantages(mdp, policy), axis=1)


def performance_difference(mdp: MDP, policy: jax.Array, new: jax.Array) -> jax.Array:
    """η(π̃) - η(π) = Σ_s d_π̃(s) Σ_a π̃(a|s) A_π(s, a) / (1 - γ) (Kakade and Langford, 2002, lemma 6.1)."""
    return policy_advantage(mdp, policy, new, visitation(mdp, new)) / (1.0 - mdp.gamma)


def surrogate(mdp: MDP, policy: jax.Array, new: jax.Array) -> jax.Array:
    """L_π(π̃) = η(π) + Σ_s d_π(s) Σ_a π̃(a|s) A_π(s, a) / (1 - γ): the lemma with π's visitation for π̃'s.

    (Schulman et al., 2015, arXiv:1502.05477, eq. 3.)
    """
    gain = policy_advantage(mdp, policy, new, visitation(mdp, policy)) / (1.0 - mdp.gamma)
    return expected_return(mdp, policy) + gain


def policy_gradient(mdp: MDP, policy: PolicyMap, theta: jax.Array) -> jax.Array:
    """∇η(θ) = Σ_s d(s) Σ_a ∇π(a|s) Q(s, a) / (1 - γ), [P] (Sutton et al., 2000, theorem 1)."""
    table, pull_back = jax.vjp(policy, theta)
    weights = visitation(mdp, table)[:, None] * action_values(mdp, table) / (1.0 - mdp.gamma)
    return pull_back(weights)[0]


def fisher_matrix(mdp: MDP, policy: PolicyMap, theta: jax.Array) -> jax.Array:
    """F(θ) = Σ_s d(s) Σ_a π(a|s) ∇log π(a|s) ∇log π(a|s)ᵀ, [P, P] (Kakade, 2001, eq. 2)."""
    table, slope = policy(theta), jax.jacobian(policy)(theta)
    weights = visitation(mdp, table)[:, None] / jnp.where(table > 0, table, jnp.inf)  # π ∇log π ∇log πᵀ = ∇π ∇πᵀ / π
    return jnp.einsum("sa,sap,saq->pq", weights, slope, slope)


def kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p(·|s) ‖ q(·|s)) in each state, [S], with 0 log 0 = 0."""
    safe = jnp.where(p > 0, p, 1.0)
    return jnp.sum(p * (jnp.log(safe) - jnp.log(jnp.where(p > 0, q, 1.0))), axis=1)


def mixture(policy: jax.Array, target: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """(1 - α) π + α π′, [S, A]."""
    return (1.0 - alpha) * policy + alpha * target


def cpi_bound(mdp: MDP, policy: jax.Array, target: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """What η((1 - α) π + α π′) is at least (Kakade and Langford, 2002, theorem 4.1).

    η(π) + α / (1-γ) · (𝔸 - 2αγε / (1 - γ(1-α))),   𝔸 = Σ_s d_π Σ_a π′ A_π,   ε = max_s |Σ_a π′(a|s) A_π(s, a)|
    """
    gain, epsilon = _cpi_terms(mdp, policy, target)
    loss = 2.0 * alpha * mdp.gamma * epsilon / (1.0 - mdp.gamma * (1.0 - alpha))
    return expected_return(mdp, policy) + alpha / (1.0 - mdp.gamma) * (gain - loss)


def cpi_alpha(mdp: MDP, policy: jax.Array, target: jax.Array) -> jax.Array:
    """α = (1-γ) 𝔸 / 4ε, at most ¼, at which η rises by at least 𝔸² / 8ε; 0 where 𝔸 ≤ 0.

    (Ibid., corollary 4.2, with ε in place of the largest reward, which is no less: their values have a factor 1-γ.)
    """
    gain, epsilon = _cpi_terms(mdp, policy, target)
    return (1.0 - mdp.gamma) * jnp.maximum(gain, 0.0) / (4.0 * jnp.where(epsilon > 0, epsilon, 1.0))


def cpi_step(mdp: MDP, policy: jax.Array) -> jax.Array:
    """Conservative policy iteration: a mixture with the greedy policy, at `cpi_alpha`."""
    target = greedy_policy(mdp, policy)
    return mixture(policy, target, cpi_alpha(mdp, policy, target))


def penalty_coefficient(mdp: MDP, policy: jax.Array) -> jax.Array:
    """C = 4εγ / (1-γ)², ε = max |A_π(s, a)| (arXiv:1502.05477, eq. 9)."""
    return 4.0 * jnp.max(jnp.abs(advantages(mdp, policy))) * mdp.gamma / (1.0 - mdp.gamma) ** 2


def monotonic_bound(mdp: MDP, policy: jax.Array, new: jax.Array) -> jax.Array:
    """What η(π̃) is at least: L_π(π̃) - C max_s KL(π ‖ π̃) (arXiv:1502.05477, theorem 1 and eq. 9)."""
    return surrogate(mdp, policy, new) - penalty_coefficient(mdp, policy) * jnp.max(kl(policy, new))


@jax.jit
def max_kl_penalty_step(mdp: MDP, policy: jax.Array, coefficient: jax.Array | float) -> jax.Array:
    """argmax L_π(π̃) - C max_s KL(π ‖ π̃), [S, A]; with `penalty_coefficient` TRPO's algorithm 1: η never falls.

    At the maximum all states have one KL, κ, and the multipliers of the states' constraints KL ≤ κ sum to C.
    """
    gap = _gap(mdp, policy)
    scale, weights = _scale(gap), visitation(mdp, policy) / (1.0 - mdp.gamma)

    def multipliers(bound: jax.Array) -> jax.Array:
        x = _bisect(lambda x: _tilt(policy, gap, x)[1] > bound, 1e-12 * scale, 1e12 * scale)
        return _tilt(policy, gap, x)[0]

    ends = jnp.full_like(weights[0], 1e-24), jnp.full_like(weights[0], 1e2)
    bound = _bisect(lambda bound: weights @ multipliers(bound) > coefficient, *ends)
    return _tilted(policy, gap, multipliers(bound))


@jax.jit
def mean_kl_penalty_step(mdp: MDP, policy: jax.Array, coefficient: jax.Array | float) -> jax.Array:
    """argmax L_π(π̃) - C Σ_s d_π(s) KL(π ‖ π̃), [S, A]: the mean in place of the maximum."""
    multiplier = jnp.full_like(mdp.start, coefficient * (1.0 - mdp.gamma))
    return _tilted(policy, _gap(mdp, policy), multiplier)


@jax.jit
def mean_kl_constraint_step(mdp: MDP, policy: jax.Array, max_kl: jax.Array | float) -> jax.Array:
    """argmax L_π(π̃) subject to Σ_s d_π(s) KL(π ‖ π̃) ≤ δ, [S, A] (arXiv:1502.05477, eq. 12), without approximations."""
    gap, states = _gap(mdp, policy), visitation(mdp, policy)

    def candidate(multiplier: jax.Array) -> jax.Array:
        return _tilted(policy, gap, jnp.full_like(states, multiplier))

    scale = jnp.max(_scale(gap))
    return candidate(_bisect(lambda x: states @ kl(policy, candidate(x)) > max_kl, 1e-12 * scale, 1e12 * scale))


def _cpi_terms(mdp: MDP, policy: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """𝔸 and ε of Kakade and Langford."""
    gains = jnp.sum(target * advantages(mdp, policy), axis=1)
    return visitation(mdp, policy) @ gains, jnp.max(jnp.abs(gains))


# max_π̃ Σ_a π̃(a) A(a) - λ KL(π ‖ π̃) has the solution π̃ = λ π / (x + gap), gap = max A - A, with the x > 0 at which
# it sums to 1. The three steps above differ in which λ they give to which state. Where π is 0, π̃ stays 0, although the
# KL would allow more: from a deterministic π no step moves.


def _gap(mdp: MDP, policy: jax.Array) -> jax.Array:
    """max_a A(s, a) - A(s, a) over the actions that π may take, [S, A]."""
    a = advantages(mdp, policy)
    best = jnp.max(jnp.where(policy > 0, a, -jnp.inf), axis=1, keepdims=True)
    return jnp.where(policy > 0, best - a, 0.0)


def _scale(gap: jax.Array) -> jax.Array:
    """The largest gap of each state, or 1 where no action is better than another, [S]."""
    largest = jnp.max(gap, axis=1)
    return jnp.where(largest > 0, largest, 1.0)


def _tilt(policy: jax.Array, gap: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """λ and KL(π ‖ π̃) that belong to x [S]; written with log1p, because steps may be tiny."""
    relative = gap / x[:, None]
    deficit = jnp.sum(policy * relative / (1.0 + relative), axis=1)  # 1 - x Σ π / (x + gap)
    return x / (1.0 - deficit), jnp.sum(policy * jnp.log1p(relative), axis=1) + jnp.log1p(-deficit)


def _tilted(policy: jax.Array, gap: jax.Array, multiplier: jax.Array) -> jax.Array:
    """π̃ [S, A] for the multipliers λ [S]."""
    multiplier = jnp.maximum(multiplier, 1e-12 * _scale(gap))  # 0 leaves no x to look for
    x = _bisect(lambda x: _tilt(policy, gap, x)[0] < multiplier, 1e-30 * multiplier, multiplier)
    new = policy / (x[:, None] + gap)
    return new / jnp.sum(new, axis=1, keepdims=True)


def _bisect(above: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """Where `above(x)`, true for small x, becomes false; geometric, so for 0 < low < high."""

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        right = above(middle)
        return jnp.where(right, middle, low), jnp.where(right, high, middle)

    return jax.lax.fori_loop(0, 64, halve, (low, high))[1]


def _one_minus_discounted(mdp: MDP, policy: jax.Array) -> jax.Array:
    """I - γ P_π, [S, S]."""
    return jnp.eye(policy.shape[0]) - mdp.gamma * jnp.einsum("sa,sat->st", policy, mdp.transition)


@jax.jit
def _solve(matrix: jax.Array, rhs: jax.Array) -> jax.Array:
    """x of M x = b by Gauss–Jordan elimination without pivoting, which is stable: M is diagonally dominant.

    LAPACK's batched routines, which a vmapped `jnp.linalg.solve` calls, can deadlock on a CPU with few cores.
    """

    def eliminate(augmented: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        row = augmented[k] / augmented[k, k]
        return (augmented - augmented[:, k, None] * row[None]).at[k].set(row), None

    augmented = jnp.concatenate([matrix, rhs[:, None]], axis=1)
    augmented, _ = jax.lax.scan(eliminate, augmented, jnp.arange(len(rhs)))
    return augmented[:, -1]
