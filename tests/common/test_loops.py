import pytest

from cng_portal.common.loops import for_each


def test_a_failing_item_does_not_stop_others_and_is_named_at_the_end() -> None:
    handled = []

    def action(number: int) -> None:
        handled.append(12 / number)

    with pytest.raises(ExceptionGroup) as group:
        for_each([0, 3, 0, 4], action)
    assert handled == [4, 3]
    assert [error.__notes__ for error in group.value.exceptions] == [["Failed for: 0"], ["Failed for: 0"]]
