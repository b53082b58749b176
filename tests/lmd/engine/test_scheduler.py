from hypothesis import given
from hypothesis import strategies as st

from lmd.engine.scheduler import Need, Share, plan, prompt_slice

needs = st.lists(st.tuples(st.integers(1, 2000), st.booleans()), max_size=12).map(
    lambda items: [Need(i, pending, decoding) for i, (pending, decoding) in enumerate(items)]
)


@given(needs, st.integers(1, 600), st.integers(1, 600))
def test_a_plan_stays_within_its_budgets_and_asks_nobody_for_more_than_is_pending(
    needs: list[Need], budget: int, prompt_budget: int
) -> None:
    shares = plan(needs, budget, prompt_budget)
    by_key = {need.key: need for need in needs}
    assert sum(share.n for share in shares) <= budget
    assert sum(share.n for share in shares if not by_key[share.key].decoding) <= prompt_budget
    assert all(0 < share.n <= by_key[share.key].pending for share in shares)
    assert len({share.key for share in shares}) == len(shares)


@given(needs, st.integers(1, 600), st.integers(1, 600))
def test_no_budget_is_left_while_somebody_could_use_it(needs: list[Need], budget: int, prompt_budget: int) -> None:
    shares = plan(needs, budget, prompt_budget)
    decoding = sum(need.pending for need in needs if need.decoding)
    prompts = sum(need.pending for need in needs if not need.decoding)
    used = sum(share.n for share in shares)
    spent = min(decoding, budget)
    assert used == spent + min(prompts, prompt_budget, budget - spent)


@given(needs, st.integers(16, 600))
def test_streams_go_before_prompts(needs: list[Need], budget: int) -> None:
    shares = {share.key: share.n for share in plan(needs, budget, budget)}
    starved = [need for need in needs if need.decoding and shares.get(need.key, 0) < need.pending]
    assert not starved or not any(shares.get(need.key) for need in needs if not need.decoding)


@given(needs, st.integers(16, 600), st.integers(0, 200))
def test_with_slack_prompts_are_whole_or_cut_where_much_is_on_both_sides(
    needs: list[Need], budget: int, slack: int
) -> None:
    shares = plan(needs, budget, budget, slack)
    pending = {need.key: need.pending for need in needs if not need.decoding}
    prompts = [share for share in shares if share.key in pending]
    assert sum(share.n for share in shares) <= budget + slack
    assert all(share.n <= min(pending[share.key], budget) for share in prompts)
    cut = [share for share in prompts if share.n < pending[share.key]]
    assert all(pending[share.key] - share.n > slack for share in cut if pending[share.key] <= budget)
    assert sum(share.n < slack for share in cut) <= 1
    left = budget - sum(share.n for share in shares if share.key not in pending)
    assert not (pending and left > 0) or prompts


def test_slack_spares_short_prompts_a_second_batch_and_long_ones_a_crumb() -> None:
    assert plan([Need(i, 130, False) for i in range(8)], 512, 512, 128) == [Share(i, 130) for i in range(4)]
    assert plan([Need(0, 500, False), Need(1, 500, False)], 512, 512, 128) == [Share(0, 500)]
    assert plan([Need(0, 600, False)], 512, 512, 128) == [Share(0, 512)]


def test_a_short_prompt_does_not_wait_behind_a_long_one() -> None:
    shares = {share.key: share.n for share in plan([Need(0, 4000, False), Need(1, 20, False)], 512, 512)}
    assert shares == {1: 20, 0: 492}


def test_the_oldest_long_prompt_is_sure_of_a_quarter_beside_many_short_ones() -> None:
    needs = [Need(0, 4000, False), *(Need(i, 128, False) for i in range(1, 9))]
    shares = {share.key: share.n for share in plan(needs, 512, 512)}
    assert shares[0] >= 128


def test_prompts_beside_streams_shrink_with_what_a_token_costs() -> None:
    assert prompt_slice(0.0, 0.4, 512) == 512
    assert prompt_slice(0.004, 0.4, 512) == 100
    assert prompt_slice(0.00001, 0.4, 512) == 512
    assert prompt_slice(1.0, 0.4, 512) == 64
    assert prompt_slice(1.0, 0.4, 32) == 32
