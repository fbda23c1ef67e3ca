"""Names on the Hugging Face Hub: told from local paths, and asked for once, briefly."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

#: Seconds that the Hub has to answer whether it has a name.
PATIENCE = 10.0
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: Endings of files and archives, which no repository is named by.
_FILES = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet",
    ".txt", ".yaml", ".yml", ".gz", ".zst", ".zip", ".tar",
)  # fmt: skip


def why_no_hub_name(name: str, revision: str | None = None) -> str:
    """Why a name that is nothing here is not asked for on the Hub, as a clause; "" where it is (owner/name).

    A revision says that the Hub is meant.
    """
    if not _NAME.fullmatch(name):
        return "it does not read as a Hub name (owner/name)"
    if revision is not None:
        return ""
    if name.lower().endswith(_FILES):
        return "its ending says it is a file, so the Hub was not asked"
    parent = Path(name).parent
    if parent.is_dir():
        return f"the folder {parent} is here, so a path seems to be meant and the Hub was not asked"
    return ""


def download(name: str, revision: str | None = None, **options: Any) -> Path:
    """The local folder of a Hub repository, as `snapshot_download` with these options gives it.

    The Hub is asked once, with a short time limit, whether it has the name; where it cannot be reached or refuses,
    only the cache is looked at.

    Raises:
        HfHubHTTPError, LocalEntryNotFoundError, OSError: what the Hub said; or it was not reached, and nothing is
            cached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    refused: Exception | None = None
    if not options.get("local_files_only"):
        try:
            HfApi(token=options.get("token")).repo_info(name, revision=revision, timeout=PATIENCE)
            return Path(snapshot_download(name, revision=revision, **options))
        except HfHubHTTPError as error:
            refused = error
        except HFValidationError:
            raise
        except Exception as error:  # noqa: BLE001 - no network, in the words of one of several libraries
            if isinstance(error, LocalEntryNotFoundError):
                raise
    try:
        return Path(snapshot_download(name, revision=revision, **{**options, "local_files_only": True}))
    except LocalEntryNotFoundError:
        if refused is not None:
            raise refused from None
        raise


def hub_has_data(name: str, revision: str | None = None) -> bool:
    """Whether the Hub answers that it has a data set; False where it cannot be reached (the cache may have it).

    Raises:
        HfHubHTTPError: it has none of this name or revision, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().repo_info(name, repo_type="dataset", revision=revision, timeout=PATIENCE)
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", 500) < 500:
            raise
        return False
    except Exception:  # noqa: BLE001 - no network, in the words of one of several libraries
        return False
    return True


def shown_place(name: str) -> str:
    """Where a name was looked for, as an absolute path."""
    return os.path.abspath(os.path.expanduser(name))
