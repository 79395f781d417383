"""Files of a trial that dashboards show and fetch beside it: Optuna's artifacts, in the run's folder.

    optuna-dashboard runs/NAME/journal.log --artifact-dir runs/NAME/artifacts

They are links to the run's files, which cost no space, where the file system has links.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.trial import Trial

from hwnas.run import Run


class _Links(FileSystemArtifactStore):
    """A store on a folder, whose files are links to those that were given."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self._folder = folder

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        try:
            os.link(content_body.name, self._folder / artifact_id)
        except OSError:
            super().write(artifact_id, content_body)


def attach(run: Run, trial: Trial, path: Path) -> None:
    """Show a file beside the trial, unless one of that name is there, as after a kill."""
    if path.name in {meta.filename for meta in get_all_artifact_meta(trial)}:
        return
    upload_artifact(
        artifact_store=_Links(run.folder / "artifacts"),
        file_path=str(path),
        study_or_trial=trial,
        mimetype="application/octet-stream",
    )
