"""Finds a checkpoint's folder: on this machine, in the Hugging Face cache or on the hub."""

from __future__ import annotations

from pathlib import Path

from ...shared.errors import ModelError

# Weights as safetensors, configuration, and every form of tokenizer and chat template.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]

_UNWANTED = ["consolidated*", "*/*"]  # the same weights once more, in their makers' own layout


def resolve_model(name_or_folder: str, revision: str | None = None, offline: bool = False) -> Path:
    """The folder of an existing checkpoint, or of the hub's snapshot, downloaded if need be.

    `offline` looks into the cache alone. Private and gated models need HF_TOKEN, which the
    library reads itself. Raises ModelError, whose text says what to change.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder
    import huggingface_hub  # a tenth of a second, which a folder doesn't need

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name_or_folder,
                revision=revision,
                local_files_only=offline,
                allow_patterns=_WANTED,
                ignore_patterns=_UNWANTED,
            )
        )
    # The HTTP client below the library has errors of its own, and not the same in each version.
    except Exception as error:
        reason = _explain(error, name_or_folder, revision, offline)
        if "/" not in name_or_folder:  # likely a typo: what is on the hub has an owner
            known = "demo, an existing folder, or owner/model on the hub"
            reason = f"there is no model {name_or_folder}: --model takes {known} ({reason})"
        raise ModelError(reason) from error


def _explain(error: Exception, name: str, revision: str | None, offline: bool) -> str:
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            return f"{name} is neither an existing folder nor a model's name (owner/model)"
        case errors.GatedRepoError():
            return f"{name} is gated: accept its licence on the hub, then set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return (
                f"the hub has no model {name}: check the name; "
                "if it is private, set HF_TOKEN to a token that may read it"
            )
        case errors.RevisionNotFoundError():
            return f"{name} has no revision {revision}: name one of its branches, tags or commits"
        case errors.LocalEntryNotFoundError() if offline:
            return (
                f"{name} is not in the local cache, or not whole, and downloads are off: "
                "download it once without --offline, or give a folder"
            )
        case errors.LocalEntryNotFoundError():
            return (
                f"{name} is no folder here, nor in the local cache, and the hub can't be reached: "
                f"{' '.join(str(error).split())}"
            )
        case errors.HfHubHTTPError():
            return f"the hub refused {name}: {error}"
        case _:
            return f"{name} could not be downloaded: {type(error).__name__}: {error}"
