"""`make test-openstack`: start the lab with no volume in it, run the tests of this folder on it, stop it."""

import os
import subprocess
import sys

from tests.openstack.lab import Lab


def main() -> int:
    lab = Lab()
    lab.clear()
    try:
        lab.start()
        pytest = [sys.executable, "-m", "pytest", "--quiet", "tests/openstack", *sys.argv[1:]]
        return subprocess.call(pytest, env=os.environ | {"OS_CLIENT_CONFIG_FILE": str(lab.clouds), "DATABASE_URL": ""})
    finally:
        lab.clear()


if __name__ == "__main__":
    sys.exit(main())
