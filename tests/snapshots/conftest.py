import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction

WRITE = re.compile(r'\s*(?:UPDATE|DELETE FROM)\s+"?(\w+)"?')


@pytest.fixture
def lock_order() -> Iterator[None]:
    """Fail the test when a transaction locks its customer after it has written to another row. See `lock_customer`.

    Sees this process's main connection, and transactions only: the test needs `django_db(transaction=True)`.
    """
    written: list[str] = []
    wrong: list[str] = []

    def watch(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if not connection.in_atomic_block:
            written.clear()
        elif match := WRITE.match(sql):
            if not written:
                transaction.on_commit(written.clear)
            if "locked_at" in sql and match[1] == "accounts_customer" and written[:1] not in ([], [match[1]]):
                wrong.append(f"{', '.join(written)}, then the customer")
            written.append(match[1])
        return execute(sql, params, many, context)

    with connection.execute_wrapper(watch):
        yield
    assert not wrong
