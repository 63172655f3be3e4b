"""A data set in the bucket: data/NAME/, its channels, and the verified, resumable way there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from container.contract import PARTS
from deploy.aws import Aws
from deploy.errors import DeployError

_PARALLEL = 16


@dataclass(frozen=True)
class LocalFile:
    path: Path
    key: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What a job trains on: S3 prefixes by channel, and how many photos the training channel holds."""

    channels: dict[str, str]
    photos: int
    folder: Path | None = None  # where it lies here, if it has to be pushed first


@dataclass(frozen=True)
class Difference:
    """What lies between a folder and its prefix."""

    missing: tuple[LocalFile, ...]
    same: int
    stray: tuple[str, ...]

    @property
    def bytes_to_send(self) -> int:
        return sum(file.size for file in self.missing)


def list_local(folder: Path, *, prefix: str) -> list[LocalFile]:
    """Every file below the folder but hidden ones, with its digest. Raises DeployError where there is none."""
    if not folder.is_dir():
        raise DeployError(f"{folder} is no folder; expected one with class folders, or train/ valid/ test/ of them")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    if not paths:
        raise DeployError(f"{folder} holds no files")
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_sha256, paths))
    return [
        LocalFile(path, f"{prefix}{path.relative_to(folder).as_posix()}", path.stat().st_size, digest)
        for path, digest in zip(paths, digests, strict=True)
    ]


def compare(aws: Aws, files: Iterable[LocalFile], *, prefix: str) -> Difference:
    """Which files S3 lacks or holds differently: by size first, then by the digest that was stored with each."""
    held = {
        entry["Key"]: entry["Size"]
        for entry in aws.pages("s3", "list_objects_v2", "Contents", Bucket=aws.bucket, Prefix=prefix)
    }
    files = list(files)
    digests = _stored_digests(aws, [file.key for file in files if held.get(file.key) == file.size])
    missing = tuple(file for file in files if digests.get(file.key) != file.sha256)
    stray = tuple(sorted(set(held) - {file.key for file in files} - {_manifest_key(prefix)}))
    return Difference(missing, len(files) - len(missing), stray)


def push(aws: Aws, files: Iterable[LocalFile], *, progress: Callable[[int], None]) -> None:
    """Upload in parallel; each file is whole or not there at all, so an interrupted push continues where it was."""
    aws.client("s3")  # made once, before the threads
    with ThreadPoolExecutor(_PARALLEL) as pool:
        uploads = [
            pool.submit(aws.upload, file.path, file.key, sha256=file.sha256, progress=progress) for file in files
        ]
        try:
            for upload in uploads:
                upload.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def verify(aws: Aws, files: list[LocalFile], *, prefix: str) -> None:
    """Count and digests of what is there, then the manifest that says so. Raises DeployError."""
    left = compare(aws, files, prefix=prefix)
    if left.missing:
        names = ", ".join(file.key for file in left.missing[:5])
        raise DeployError(f"{len(left.missing)} files are not in s3://{aws.bucket}/{prefix} as they are here: {names}")
    body = json.dumps({file.key: file.sha256 for file in files}, indent=0).encode()
    aws.call("s3", "put_object", Bucket=aws.bucket, Key=_manifest_key(prefix), Body=body)


def require_private_bucket(aws: Aws) -> None:
    """Raise where the bucket is missing or could be public."""
    blocked = aws.found("s3", "get_public_access_block", "NoSuchPublicAccessBlockConfiguration", Bucket=aws.bucket)
    settings = blocked["PublicAccessBlockConfiguration"] if blocked else {}
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    if open_ones := [name for name in names if not settings.get(name)]:
        raise DeployError(
            f"bucket {aws.bucket} does not block public access ({', '.join(open_ones)} off): `base apply` mends it"
        )


def in_bucket(aws: Aws, name: str) -> DataSet:
    """Data set NAME as it lies in the bucket. Raises DeployError where there is none."""
    root = f"data/{name}/"
    answer = aws.call("s3", "list_objects_v2", Bucket=aws.bucket, Prefix=root, Delimiter="/")
    folders = [entry["Prefix"].removeprefix(root).rstrip("/") for entry in answer.get("CommonPrefixes", [])]
    if not folders:
        raise DeployError(f"s3://{aws.bucket}/{root} holds no folders: `data push DIR --name {name}` first")
    channels = channels_of(folders, f"s3://{aws.bucket}/{root}")
    prefix = channels.get("training", root).removeprefix(f"s3://{aws.bucket}/")
    photos = sum(1 for _ in aws.pages("s3", "list_objects_v2", "Contents", Bucket=aws.bucket, Prefix=prefix))
    return DataSet(channels=channels, photos=photos)


def in_folder(aws: Aws, folder: Path, name: str) -> DataSet:
    """The folder as data set NAME, once it is pushed. Raises DeployError where it holds no folders."""
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not folders:
        raise DeployError(f"{folder} holds no folders; expected one with class folders, or train/ valid/ test/ of them")
    root = f"s3://{aws.bucket}/data/{name}/"
    channels = channels_of(folders, root)
    training = folder / channels.get("training", root).removeprefix(root)
    photos = sum(path.is_file() and not _hidden(path.relative_to(folder)) for path in training.rglob("*"))
    return DataSet(channels=channels, photos=photos, folder=folder)


def channels_of(folders: Iterable[str], root: str) -> dict[str, str]:
    """The folders train/, valid/ and test/ below `root` as channels, or the whole of it for training."""
    found = {
        channel: f"{root}{folder}/" for channel, names in PARTS.items() for folder in folders if folder.lower() in names
    }
    return found or {"training": root}


def _manifest_key(prefix: str) -> str:
    """Beside the data, not in it: a channel holds photos only."""
    return f"manifests/{prefix.rstrip('/').replace('/', '_')}.json"


def _stored_digests(aws: Aws, keys: list[str]) -> dict[str, str]:
    def digest(key: str) -> str:
        return str(aws.call("s3", "head_object", Bucket=aws.bucket, Key=key)["Metadata"].get("sha256", ""))

    aws.client("s3")
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return dict(zip(keys, pool.map(digest, keys), strict=True))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts) or path.name in ("Thumbs.db", "desktop.ini")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
