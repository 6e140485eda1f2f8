"""Trackers for `[telemetry] trackers`: copy a function into a file beside your run file, and name it there.

    [telemetry]
    trackers = ["trackers:mlflow_run"]

A tracker takes the run (`name`, `path`, `config`) once and returns a function that is called after every step with the
row of metrics.jsonl and the step. A run that is resumed opens its trackers again, with the same name and path.
"""


def mlflow_run(run):
    """MLflow; MLFLOW_TRACKING_URI names the server. The run's id is kept in the run folder, for a resume."""
    import mlflow

    mlflow.set_experiment("cepo")
    known = run.path / "mlflow-run-id"
    opened = mlflow.start_run(run_id=known.read_text() if known.exists() else None, run_name=run.name)
    known.write_text(opened.info.run_id)
    mlflow.log_dict(run.config, "config.json")
    return mlflow.log_metrics


def trackio_run(run):
    """trackio, which keeps its runs on this machine; `trackio show` opens them."""
    import trackio

    trackio.init(project="cepo", name=run.name, config=run.config, resume="allow")
    return trackio.log
