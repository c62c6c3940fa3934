"""Upload of an exported folder to the Hugging Face hub, from which ``StyleEncoder.from_pretrained`` loads it."""

import logging
import re
import shutil
import tempfile
from pathlib import Path

from nuanced_core.encoder.pretrained import read_pretrained
from nuanced_core.errors import ConfigError, EndpointError, one_line
from nuanced_core.export.card import loading_line

__all__ = ["check_repository", "push_to_hub"]

logger = logging.getLogger(__name__)

# What an export consists of; other files in the folder are not published by mistake.
_PUBLISHED = ["README.md", "config.json", "model.safetensors", "encoder.onnx", "evaluation.json", "samples/*.mp3"]
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repository(repository: str) -> None:
    """Check that ``repository`` has the form OWNER/NAME.

    Raises:
        ConfigError: it has not.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"--push {repository}: not a repository of the hub; give OWNER/NAME")


def push_to_hub(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload an exported folder to ``repository`` (OWNER/NAME) in one commit, and return the commit's address.

    The repository is created if it does not exist. The card loads the encoder from there. The token is that of
    ``hf auth login`` or of ``$HF_TOKEN``.

    Raises:
        ConfigError: ``repository`` is no OWNER/NAME.
        WeightsError: the folder is no export, or is damaged.
        EndpointError: the hub cannot be reached, or refuses the upload.
    """
    check_repository(repository)
    read_pretrained(folder)
    if not (folder / "evaluation.json").is_file():
        logger.warning(
            "%s: its card has no results on held-out voices; run 'nuanced evaluate %s --card', and push it again",
            folder, folder,
        )  # fmt: skip
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="nuanced-push-") as temporary:
        staged = Path(temporary) / "model"
        shutil.copytree(folder, staged)
        card = staged / "README.md"
        if card.is_file():
            line = re.compile(re.escape(loading_line("@")).replace("@", '[^"]*'))
            # A function, since a repository's name is no pattern.
            card.write_text(line.sub(lambda _: loading_line(repository), card.read_text("utf-8")), "utf-8")
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=staged,
                allow_patterns=_PUBLISHED,
                commit_message="Upload of a StyleEncoder of Nuanced Speech",
            )
        except Exception as error:  # the types depend on the HTTP library that huggingface_hub uses
            reason = one_line(error, 300)
            raise EndpointError(
                f"--push {repository}: the hub did not take it: {reason}; "
                "log in with 'hf auth login' (or set HF_TOKEN) as somebody who may write there"
            ) from None
    return str(done.commit_url)
