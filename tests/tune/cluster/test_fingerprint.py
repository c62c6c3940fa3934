"""tune.cluster.fingerprint: what a fingerprint covers, and which differences make a node unfit."""

from dataclasses import replace
from importlib import metadata

from tune.cluster.fingerprint import fingerprint_difference, node_fingerprint


def test_the_fingerprint_covers_the_packages_that_results_depend_on() -> None:
    versions = node_fingerprint().versions
    assert set(versions) == {
        *("nuanced-speech", "kokoro", "misaki", "numpy", "openai-whisper", "optuna", "ray", "torch")
    }
    assert versions["torch"] == metadata.version("torch")


def test_differences_in_code_python_packages_and_model_files_are_described() -> None:
    driver = node_fingerprint()
    assert fingerprint_difference(driver, driver) is None
    code = replace(driver, code="0" * 12)
    assert "has other code (000000000000, the driver" in str(fingerprint_difference(driver, code))
    python = replace(driver, python="3.9.1")
    assert "has Python 3.9.1, the driver" in str(fingerprint_difference(driver, python))
    patch = replace(driver, python=driver.python.rpartition(".")[0] + ".99")
    assert fingerprint_difference(driver, patch) is None
    old = replace(driver, versions={**driver.versions, "torch": "1.0"})
    assert "has torch 1.0, the driver" in str(fingerprint_difference(driver, old))
    one, other = replace(driver, models={"a": "1" * 64, "b": "2" * 64}), replace(driver, models={"a": "3" * 64})
    assert "has another a (SHA-256 333333333333, the driver 111111111111)" in str(fingerprint_difference(one, other))
    assert fingerprint_difference(one, replace(driver, models={})) is None  # the node will fetch them
