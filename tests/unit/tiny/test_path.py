import subprocess
import sys

import cepo.tiny


def test_path_is_the_model_folder() -> None:
    assert (cepo.tiny.path() / "config.json").is_file()


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, cepo.tiny; cepo.tiny.path(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
