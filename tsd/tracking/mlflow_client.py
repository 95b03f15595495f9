"""MLflow as tsd uses it: no telemetry, short time-outs, and its warnings at import suppressed."""

import os
import warnings

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# By default MLflow retries an unavailable server for minutes. Here a request times out within seconds and is
# repeated.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunStatus
    from mlflow.exceptions import MlflowException

__all__ = ["Metric", "MlflowClient", "MlflowException", "Param", "RunStatus"]
