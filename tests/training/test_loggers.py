"""MLflow's own Keras callback in a run, with a local store."""

from __future__ import annotations

import pytest
from helpers import assert_same_end, history, tiny

from vggkeras.training.train import train

pytestmark = pytest.mark.integration


def test_mlflow_logs_the_metrics_of_every_epoch(photos, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is no dependency: pip install mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    from mlflow.keras.callback import MlflowCallback

    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    recipe = tiny(tmp_path / "run", data=str(photos))
    with mlflow.start_run() as logged:
        run = train(recipe, callbacks=[MlflowCallback()])
    mlflow.flush_async_logging()
    client = mlflow.MlflowClient()
    rows = history(run.path)
    for name in ("loss", "accuracy", "val_accuracy", "val_cross_entropy"):
        values = client.get_metric_history(logged.info.run_id, name)
        assert [value.step for value in values] == [0, 1]
        assert [value.value for value in values] == pytest.approx(
            [float(row[name]) for row in rows], abs=1e-6
        )
    assert client.get_run(logged.info.run_id).data.params["optimizer_name"] == "sgd"
    assert_same_end(run, train(tiny(tmp_path / "without", data=str(photos))))
