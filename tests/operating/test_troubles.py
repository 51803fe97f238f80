"""What is wrong with the daemon's own settings takes no device down."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bellwired.manager import main
from operating.instance import QUICK, Instance, connect


def test_a_broken_bellwired_toml_at_the_start_takes_no_device_down(instance: Instance) -> None:
    instance.settings(f"{QUICK}stop-timeouts = 1\n")
    path = instance.configure("one")
    with instance:
        connect(path).close()
        assert "bellwired.toml:7: unknown key stop-timeouts" in instance.said("stop-timeouts")
        assert "trouble with bellwired.toml" in instance.said("ready:")


def test_metrics_that_cannot_be_served_take_no_device_down_and_are_tried_again(
    instance: Instance, tmp_path: Path
) -> None:
    path = tmp_path / "metrics"
    instance.settings(f'{QUICK}metrics = "unix:{path}"\n')
    device = instance.configure("one")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with instance:
            assert "a live server listens there" in instance.said("no metrics, until the next attempt")
            assert "trouble with metrics" in instance.said("ready:")
            connect(device).close()
            other.close()
            instance.said(f"metrics at unix:{path}")


def test_a_folder_that_no_restart_mends_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_log_to", lambda _: None)
    assert main.main(["--config-dir", str(tmp_path / "gone")]) == os.EX_CONFIG
    (tmp_path / "run").mkdir(mode=0o777)
    (tmp_path / "run").chmod(0o777)
    assert main.main(["--config-dir", str(tmp_path), "--runtime-dir", str(tmp_path / "run")]) == os.EX_CONFIG
