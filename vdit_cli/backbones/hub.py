"""Fetching chosen files of a model from a hub, by `owner/name`; only ever called when a person gave such a name."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vdit_cli.artifacts.places import user_cache_path
from vdit_cli.backbones.sources import size_text
from vdit_cli.errors import ENVIRONMENT, FAILED, EvditError, nearest, quoted
from vdit_cli.timing import Progress

SAFE_SUFFIXES = (".json", ".safetensors", ".model")
"""What is fetched: configurations, weights without code in them, sentencepiece vocabularies."""


@dataclass(frozen=True)
class Listing:
    """The files of a model on a hub at one commit: path -> bytes. `local` is set instead where the hub did not answer
    but an earlier fetch is in the cache."""

    hub_id: str
    commit: str
    files: Mapping[str, int]
    local: Path | None = None


def list_files(hub_id: str, progress: Progress) -> Listing:
    """The files of `hub_id`; without a connection, those that were fetched before.

    Raises EvditError: 2 for no hub id, 3 for a model that is not there or not open to this person, or a hub that does
    not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        info = HfApi().model_info(hub_id, files_metadata=True)
    except GatedRepoError as error:
        raise _refused(hub_id, "its owner opens it to approved accounts only", "ask for access on its page") from error
    except RepositoryNotFoundError as error:
        why = "the hub has no such model, or it is private"
        raise _refused(hub_id, why, "check the spelling of owner/name") from error
    except HFValidationError as error:
        raise EvditError(
            f"{hub_id} is no hub id: it must be owner/name", where=hub_id, next_steps=["evdit models"]
        ) from error
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        local = _fetched_before(hub_id)
        if local is None:
            raise _unreachable(hub_id, error) from error
        progress.say(f"the hub does not answer: using what was fetched of {hub_id} before, in {local}")
        found = {path.relative_to(local).as_posix(): path.stat().st_size for path in local.rglob("*") if path.is_file()}
        return Listing(hub_id, local.name, found, local)
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return Listing(hub_id, info.sha or "main", {path: size for path, size in files.items() if _stays_inside(path)})


def fetch(listing: Listing, paths: Iterable[str], progress: Progress) -> Path:
    """Bring `paths` of the listing into the hub's cache and return the folder that holds them.

    What is there already is not fetched again. Raises EvditError: 1 for a disk that is too full, 3 for a connection
    that breaks; the same command then goes on where it stopped.
    """
    if listing.local is not None:
        return listing.local
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.file_download import try_to_load_from_cache

    wanted, cache = sorted(paths), cache_folder()
    missing = [
        path
        for path in wanted
        if not isinstance(try_to_load_from_cache(listing.hub_id, path, cache, listing.commit), str)
    ]
    total = sum(listing.files[path] for path in missing)
    if missing:
        progress.say(f"fetching {size_text(total)} of {listing.hub_id} ({len(missing)} files) into {cache}")
        _check_disk(listing.hub_id, total, cache)
    folder = None
    for count, path in enumerate(wanted, 1):
        if path in missing:
            progress.say(f"[{count}/{len(wanted)}] {path}  {size_text(listing.files[path])}")
        try:
            # By branch, not by commit: only then does the cache remember it as the newest, for use without a network.
            file = hf_hub_download(listing.hub_id, path, revision="main", cache_dir=cache)
        except (HTTPError, OSError) as error:
            raise _unreachable(f"{listing.hub_id} {path}", error) from error
        found = Path(file).parents[len(PurePosixPath(path).parents) - 1]
        if folder not in (None, found):
            raise EvditError(
                f"{listing.hub_id} changed on the hub while it was fetched",
                where=f"--model {listing.hub_id}",
                next_steps=["the same command again"],
                exit_code=ENVIRONMENT,
            )
        folder = found
    if folder is None:
        raise ValueError("no file to fetch")
    return folder


def cache_folder() -> Path:
    """Where fetched models are kept: the hub library's own place, or ours where there is no home folder."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return user_cache_path() / "hub" if HF_HUB_CACHE.startswith("~") else Path(HF_HUB_CACHE)


def _fetched_before(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, cache_dir=cache_folder(), local_files_only=True))
    except IncompleteSnapshotError as error:  # a part was asked for, by --include: it may be all that is needed
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        return None


def _stays_inside(path: str) -> bool:
    """Whether a path of a listing is relative and never climbs out of its folder."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path and ":" not in path


def _check_disk(hub_id: str, needed: int, cache: Path) -> None:
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise EvditError(
            f"{hub_id} needs {size_text(needed)} of disk, and {size_text(free)} are free",
            where=str(cache),
            next_steps=["free some space", "set HF_HOME to a larger disk"],
            exit_code=FAILED,
        )


def _refused(hub_id: str, why: str, step: str) -> EvditError:
    return EvditError(
        f"{hub_id} can't be fetched: {why}, and there is no folder {hub_id} here",
        where=hub_id,
        next_steps=[*_alike(hub_id), step, "hf auth login  (private and gated models)", "--model FOLDER"],
        exit_code=ENVIRONMENT,
    )


def _unreachable(what: str, error: Exception) -> EvditError:
    from huggingface_hub.constants import ENDPOINT

    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    hub_id = what.partition(" ")[0]
    again = "the same command again with a connection (it goes on where it stopped)"
    return EvditError(
        f"{what} can't be fetched: {reason}; there is no folder {hub_id} here",
        where=ENDPOINT,
        next_steps=[*_alike(hub_id), again, "--model FOLDER"],
        exit_code=ENVIRONMENT,
    )


def _alike(hub_id: str) -> list[str]:
    """The folder that is here and may have been meant: the most alike of those beside the place that was named."""
    parent, _, name = hub_id.rpartition("/")
    beside = [path.name for path in Path(parent).iterdir() if path.is_dir()] if Path(parent).is_dir() else []
    return [f"{quoted(f'{parent}/{each}')}, which is a folder here" for each in nearest(name, beside, 1)]
