"""Whether a guest runs on KVM."""

from __future__ import annotations

import pytest

from bellwired.guest import qemus


@pytest.mark.parametrize(
    ("emulates", "makes", "found"),
    [
        pytest.param(False, True, "kvm", id="KVM runs kernels on the processor"),
        pytest.param(True, True, "tcg", id="KVM emulates kernels"),
        pytest.param(None, True, "kvm", id="KVM does not tell"),
        pytest.param(None, False, "tcg", id="KVM makes no machine"),
    ],
)
def test_kvm_is_taken_where_it_runs_a_guests_kernel(
    emulates: bool | None, makes: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemus, "emulates_kernels", lambda: emulates)
    monkeypatch.setattr(qemus, "makes_machines", lambda: makes)
    assert qemus.accelerator.__wrapped__() == found
