"""A real OpenStack block storage service on one Debian machine: Keystone, Cinder, RabbitMQ, PostgreSQL, and Ceph below it.

    python -m tests.lab.openstack.lab start [FOLDER]    start the services that aren't running
    python -m tests.lab.openstack.lab stop [FOLDER]     stop the services that it started
    python -m tests.lab.openstack.lab clear [FOLDER]    also delete every volume; the installed programs stay

Everything is in FOLDER (LAB, or /var/tmp/portal-openstack) and listens on 127.0.0.1 only, on ports that were free when the
folder was created. FOLDER/clouds.yaml has the clouds `demo` (a member), `demo-reader`, `other` (another project),
`portal` (a member of both projects, as a portal's account is) and `admin`. Needs root, because Debian's packages are
installed and PostgreSQL refuses to run as root; no systemd and no kernel module. The storage is one Ceph OSD on a sparse
file: fast, but not durable.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from keystoneauth1.exceptions import ClientException

from tests.postgres import find_server_programs

HERE = Path(__file__).parent
DEFAULT_FOLDER = Path(os.environ.get("LAB") or "/var/tmp/portal-openstack")
PACKAGES = ["rabbitmq-server", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common", "python3-rbd", "python3-rados"]
PACKAGES += ["postgresql"]
PORTS = ["keystone", "cinder", "postgres", "rabbit", "rabbit_cluster", "epmd", "monitor", "monitor_v1"]
PASSWORD = "labpass"
REGION = "RegionOne"
USERS = {"demo": ("demo", "member"), "demo-reader": ("demo", "reader"), "other": ("other", "member")}
USERS["portal"] = ("demo", "member")
ALSO_MEMBER_OF = {"portal": "other"}
RABBIT = "/usr/lib/rabbitmq/bin/rabbitmq-server"
WSGI = "gunicorn", "--no-control-socket", "--workers", "2", "--worker-class", "gthread"
WSGI += "--keep-alive", "65"  # as long as clients do: a connection that the server closes first looks like a failure


class LeftOut(Exception):
    """The lab can't be used here; the message says why."""


class Lab:
    def __init__(self, folder: Path = DEFAULT_FOLDER) -> None:
        self.folder = folder.absolute()
        self.state = self.folder / "state"  # removed by `clear`
        self.programs = self.folder / "venv" / "bin"
        self.ceph_conf = self.folder / "ceph" / "ceph.conf"
        self.cinder_conf = self.state / "cinder" / "cinder.conf"
        self.keystone_conf = self.state / "keystone" / "keystone.conf"
        self.services = {
            "rabbit": ([RABBIT], self.rabbit_environment),
            "ceph-mon": (["ceph-mon", "-c", self.ceph_conf, "-i", "a", "-f"], {}),
            "ceph-mgr": (["ceph-mgr", "-c", self.ceph_conf, "-i", "x", "-f"], {}),
            "ceph-osd": (["ceph-osd", "-c", self.ceph_conf, "-i", "0", "-f"], {}),
            "keystone": (
                [self.programs / WSGI[0], *WSGI[1:], "--bind", f"127.0.0.1:{self.ports['keystone']}", "keystone_app"],
                {"OS_KEYSTONE_CONFIG_DIR": str(self.keystone_conf.parent)},
            ),
            "cinder-scheduler": ([self.programs / "cinder-scheduler", "--config-file", self.cinder_conf], {}),
            "cinder-volume": ([self.programs / "cinder-volume", "--config-file", self.cinder_conf], {}),
            "cinder-api": (
                [self.programs / WSGI[0], *WSGI[1:], "--bind", f"127.0.0.1:{self.ports['cinder']}", "cinder_app"],
                {"CINDER_CONF": str(self.cinder_conf)},
            ),
        }

    # The lab

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in "run", "log", "wsgi":
            (self.folder / name).mkdir(exist_ok=True)
        begin = time.monotonic()

        def log(what: str) -> None:
            print(f"[{time.monotonic() - begin:5.0f} s] {what}", flush=True)

        with ThreadPoolExecutor() as pool:
            programs = pool.submit(self.install_openstack)
            self.install_packages()
            log("Debian's packages are there")
            ceph = pool.submit(self.start_ceph)
            self.start_rabbit()
            self.start_postgres()
            programs.result()
            log("OpenStack's programs are there")
            self.configure()
            self.make_databases()
            log("databases are there")
            ceph.result()
            log("Ceph runs")
            for name in "keystone", "cinder-scheduler", "cinder-volume", "cinder-api":
                self.start_service(name)
            self.wait_for_port("keystone")
            self.wait_for_port("cinder")
        self.write_clouds()
        self.fill_catalogue()
        self.wait_for_cinder()
        log(f"Cinder runs: OS_CLIENT_CONFIG_FILE={self.clouds} OS_CLOUD=demo")

    def stop(self, *, kill: bool = False) -> None:
        for name in reversed(self.services):
            self.stop_service(name, kill=kill)
        if (self.state / "postgres" / "postmaster.pid").exists():
            self.run_as_postgres("pg_ctl", "-D", self.state / "postgres", "--mode=immediate", "--silent", "stop")
        if shutil.which("epmd"):
            run("epmd", "-kill", env={"ERL_EPMD_PORT": str(self.ports["epmd"])}, check=False)

    def clear(self) -> None:
        self.stop(kill=True)  # its data won't be read again
        for name in "state", "ceph", "run", "log":
            shutil.rmtree(self.folder / name, ignore_errors=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder within the block. Raises LeftOut if another run uses it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LeftOut(f"another run uses {self.folder}. Name another folder: LAB=…") from None
            yield

    def is_whole(self) -> bool:
        """Return whether all services work; those that are starting get two minutes."""
        try:
            self.wait_for_cinder()
        except SystemExit:
            return False
        return all(self.pid(name) for name in self.services)

    @property
    def clouds(self) -> Path:
        return self.folder / "clouds.yaml"

    @cached_property
    def ports(self) -> dict[str, int]:
        """Free ports, stored in a file, because the address of Ceph's monitor is permanent."""
        path = self.folder / "ports.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            sockets = [socket.create_server(("127.0.0.1", 0)) for _name in PORTS]
            ports = [each.getsockname()[1] for each in sockets]
            for each in sockets:
                each.close()
            path.write_text(json.dumps(dict(zip(PORTS, ports, strict=True))))
        return json.loads(path.read_text())

    # One service: a process group whose leader's PID is in a file

    def pid(self, name: str) -> int | None:
        """Return the PID of the service's process, or None if it isn't alive."""
        path = self.folder / "run" / f"{name}.pid"
        try:
            pid, started = path.read_text().split()
            if process_start(int(pid)) == started:
                return int(pid)
        except (FileNotFoundError, ValueError):
            pass
        return None

    def start_service(self, name: str) -> None:
        if self.pid(name):
            return
        command, environment = self.services[name]
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                env=os.environ | {"PATH": f"{self.programs}:{os.environ['PATH']}"} | environment,
                cwd=self.folder / "wsgi",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.folder / "run" / f"{name}.pid").write_text(f"{process.pid} {process_start(process.pid)}")

    def stop_service(self, name: str, *, kill: bool = False) -> None:
        """Stop a service, or `kill` it at once."""
        pid = self.pid(name)
        if pid is None:
            return
        os.killpg(pid, signal.SIGKILL if kill else signal.SIGTERM)
        if not kill:
            os.killpg(pid, signal.SIGCONT)
        if not wait_until(lambda: not is_group_alive(pid), seconds=20):
            os.killpg(pid, signal.SIGKILL)
            wait_until(lambda: not is_group_alive(pid), seconds=20)
        (self.folder / "run" / f"{name}.pid").unlink()

    @contextmanager
    def stopped(self, name: str, *, kill: bool = False) -> Any:
        """Stop the service within the block; afterwards everything works again."""
        self.stop_service(name, kill=kill)
        try:
            yield
        finally:
            self.start_service(name)
            if name == "rabbit":
                self.wait_for_port("rabbit")
            self.wait_for_cinder()

    @contextmanager
    def frozen(self, name: str) -> Any:
        """Freeze the service within the block: it accepts connections but doesn't answer."""
        pid = self.pid(name)
        assert pid, f"{name} does not run"
        os.killpg(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(pid, signal.SIGCONT)
            if name == "ceph-osd":
                self.wake_storage()
            self.wait_for_cinder()

    def wake_storage(self) -> None:
        """Wait until the storage works. Placement groups may stay "laggy", because a single OSD has no peer that reports it
        down. Only then is it marked down, because that delays it.
        """
        ceph = ["ceph", "-c", self.ceph_conf, "--connect-timeout", "60"]

        def is_clean() -> bool:
            states = json.loads(run(*ceph, "status", "-f", "json").stdout)["pgmap"]["pgs_by_state"]
            return [state["state_name"] for state in states] == ["active+clean"]

        if wait_until(is_clean, seconds=30):
            return
        run(*ceph, "osd", "down", "0")
        if not wait_until(is_clean, seconds=90):
            raise SystemExit(f"Ceph does not wake up; see {self.folder / 'log'}")

    def wait_for_port(self, name: str) -> None:
        def is_open() -> bool:
            try:
                socket.create_connection(("127.0.0.1", self.ports[name]), timeout=1).close()
            except OSError:
                return False
            return True

        if not wait_until(is_open, seconds=90):
            raise SystemExit(f"{name} does not come up; see {self.folder / 'log'}")

    def wait_for_cinder(self) -> None:
        """Wait until every service is up and the scheduler knows the pool; before that, volumes end in `error`."""

        def is_up() -> bool:
            try:
                cinder = connect(self, "admin").block_storage
                services = cinder.get("/os-services").json()["services"]
                states = {each["binary"]: each["state"] for each in services}
                pools = cinder.get("/scheduler-stats/get_pools").json()["pools"]
            except (ClientException, KeyError, ValueError):
                return False
            return bool(pools) and states == {"cinder-scheduler": "up", "cinder-volume": "up"}

        if not wait_until(is_up, seconds=120):
            raise SystemExit(f"Cinder does not come up; see {self.folder / 'log'}")

    # Installing

    def install_packages(self) -> None:
        query = ["dpkg-query", "-W", "-f${db:Status-Status}"]
        missing = [each for each in PACKAGES if run(*query, each, check=False).stdout.strip() != "installed"]
        if not missing:
            return
        policy = Path("/usr/sbin/policy-rc.d")
        ours = not policy.exists()
        if ours:  # a new package would start its daemon on every address
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            wait = ["-o", "DPkg::Lock::Timeout=300"]
            run("dpkg", "--configure", "-a", env=quiet)  # the remains of an interrupted installation
            run("apt-get", "-qq", "update", env=quiet)
            run("apt-get", "-qq", *wait, "install", "-y", "--no-install-recommends", *missing, env=quiet)
        finally:
            if ours:
                policy.unlink()

    def install_openstack(self) -> None:
        requirements = HERE / "requirements.txt"
        done = self.folder / "venv" / "installed"
        if done.exists() and done.read_text() == requirements.read_text():
            return
        run(sys.executable, "-m", "venv", self.folder / "venv")
        pip = [self.programs / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        run(*pip, "--disable-pip-version-check", "--no-input", "--requirement", requirements)
        done.write_text(requirements.read_text())

    # RabbitMQ and PostgreSQL

    @property
    def rabbit_environment(self) -> dict[str, str]:
        home = self.state / "rabbit"
        return {
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"lab{self.ports['rabbit']}@localhost",
            "RABBITMQ_DIST_PORT": str(self.ports["rabbit_cluster"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.ports["epmd"]),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none",
        }

    def start_rabbit(self) -> None:
        home = self.state / "rabbit"
        home.mkdir(parents=True, exist_ok=True)
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.ports['rabbit']}\n"
            "vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 200MB\n"
        )
        self.start_service("rabbit")

    def start_postgres(self) -> None:
        data = self.state / "postgres"
        if not (data / "PG_VERSION").exists():
            data.mkdir(mode=0o700, parents=True)
            shutil.chown(data, "postgres", "postgres")
            options = ["--username=lab", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
            self.run_as_postgres("initdb", "-D", data, *options)
            with open(data / "postgresql.conf", "a") as conf:
                conf.write(f"listen_addresses = '127.0.0.1'\nport = {self.ports['postgres']}\nmax_connections = 200\n")
                conf.write("unix_socket_directories = ''\nfsync = off\nfull_page_writes = off\n")
        control = ["pg_ctl", "-D", data, "--wait", "--silent", "--log", data / "log"]
        if self.run_as_postgres("pg_ctl", "-D", data, "status", check=False).returncode:
            self.run_as_postgres(*control, "start")

    def run_as_postgres(self, program: str, *arguments: Any, check: bool = True) -> subprocess.CompletedProcess:
        folder = find_server_programs()
        assert folder, "PostgreSQL is not installed"
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        # the running server would keep a pipe open
        return subprocess.run(
            [str(word) for word in (folder / program, *arguments)],
            check=check,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            **user,
        )

    # Ceph

    def start_ceph(self) -> None:
        new = not (self.ceph_conf.parent / "made").exists()
        ceph = ["ceph", "-c", self.ceph_conf, "--connect-timeout", "60"]
        if new:
            self.make_monitor()
        self.start_service("ceph-mon")
        run(*ceph, "mon", "stat")
        if new:
            self.make_storage(ceph)
        self.start_service("ceph-mgr")
        self.start_service("ceph-osd")
        if new:
            run(*ceph, "osd", "pool", "create", "volumes", "16", "16")
            run("rbd", "-c", self.ceph_conf, "pool", "init", "volumes")
            rights = ["mon", "profile rbd", "osd", "profile rbd pool=volumes", "mgr", "profile rbd pool=volumes"]
            run(
                *ceph, "auth", "get-or-create", "client.cinder", *rights, "-o", self.ceph_conf.parent / "cinder.keyring"
            )
            (self.ceph_conf.parent / "made").touch()

        def has_room() -> bool:
            state = json.loads(run(*ceph, "df", "-f", "json").stdout)
            return any(pool["stats"]["max_avail"] > 0 for pool in state["pools"] if pool["name"] == "volumes")

        if not wait_until(has_room, seconds=90):
            raise SystemExit(f"Ceph does not come up; see {self.folder / 'log'}")

    def make_monitor(self) -> None:
        folder, fsid = self.ceph_conf.parent, str(uuid4())
        shutil.rmtree(folder, ignore_errors=True)
        for name in "mon", "mgr", "osd", "run", "log":
            (folder / name).mkdir(parents=True)
        addresses = f"[v2:127.0.0.1:{self.ports['monitor']},v1:127.0.0.1:{self.ports['monitor_v1']}]"
        settings = {
            "global": {
                "fsid": fsid,
                "mon_host": addresses,
                "mon_initial_members": "a",
                **dict.fromkeys(["public_addr", "cluster_addr"], "127.0.0.1"),
                **dict.fromkeys(["public_network", "cluster_network"], "127.0.0.0/8"),
                **dict.fromkeys(["auth_cluster_required", "auth_service_required", "auth_client_required"], "cephx"),
                "auth_allow_insecure_global_id_reclaim": "false",
                "keyring": folder / "keyring",
                "run_dir": folder / "run",
                "admin_socket": folder / "run" / "$name.$pid.asok",
                "log_file": folder / "log" / "$name.log",
                "osd_pool_default_size": 1,
                "osd_pool_default_min_size": 1,
                "osd_pool_default_pg_autoscale_mode": "off",
                "mon_allow_pool_size_one": "true",
                "mon_warn_on_pool_no_redundancy": "false",
                "osd_crush_chooseleaf_type": 0,
                "osd_crush_update_on_start": "false",
            },
            "mon.a": {"mon_data": folder / "mon", "mon_data_avail_crit": 1, "mon_data_avail_warn": 2},
            "mgr.x": {"mgr_data": folder / "mgr", "keyring": folder / "mgr" / "keyring"},
            "osd.0": {
                "osd_data": folder / "osd",
                "keyring": folder / "osd" / "keyring",
                "bluestore_block_size": 20 * 1024**3,  # a sparse file
                "bluestore_block_wal_create": "false",
                "bluestore_block_db_create": "false",
                "osd_memory_target": 1024**3,
            },
            "client.cinder": {"keyring": folder / "cinder.keyring"},
        }
        self.ceph_conf.write_text(ini(settings))
        keyring = folder / "keyring"
        run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        all_rights = [word for name in ("mon", "osd", "mgr") for word in ("--cap", name, "allow *")]
        run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *all_rights)
        run("monmaptool", "--create", "--clobber", "--addv", "a", addresses, "--fsid", fsid, folder / "monmap")
        options = ["--mkfs", "-i", "a", "--monmap", folder / "monmap", "--keyring", keyring]
        run("ceph-mon", "-c", self.ceph_conf, *options)

    def make_storage(self, ceph: list[Any]) -> None:
        folder, disk = self.ceph_conf.parent, str(uuid4())
        rights = ["mon", "allow profile mgr", "osd", "allow *"]
        run(*ceph, "auth", "get-or-create", "mgr.x", *rights, "-o", folder / "mgr" / "keyring")
        secret = run("ceph-authtool", "--gen-print-key").stdout.strip()
        run(*ceph, "osd", "new", disk, "-i", "-", stdin=json.dumps({"cephx_secret": secret}))
        run("ceph-authtool", "--create-keyring", folder / "osd" / "keyring", "-n", "osd.0", "--add-key", secret)
        run("ceph-osd", "-c", self.ceph_conf, "-i", "0", "--mkfs", "--osd-uuid", disk)
        run(*ceph, "osd", "crush", "add", "osd.0", "1", "root=default", "host=lab")

    # Keystone and Cinder

    def configure(self) -> None:
        for path in self.keystone_conf.parent, self.cinder_conf.parent / "lock":
            path.mkdir(parents=True, exist_ok=True)
        packages = next((self.folder / "venv" / "lib").glob("python3*/site-packages"))
        for name in "rados", "rbd":
            for module in Path("/usr/lib/python3/dist-packages").glob(f"{name}.cpython-3{sys.version_info.minor}-*.so"):
                (packages / module.name).unlink(missing_ok=True)
                (packages / module.name).symlink_to(module)
        keys, etc, log = self.keystone_conf.parent, self.folder / "venv" / "etc" / "cinder", self.folder / "log"
        database = f"postgresql+psycopg2://lab@127.0.0.1:{self.ports['postgres']}"
        self.keystone_conf.write_text(
            ini(
                {
                    "DEFAULT": {"log_file": log / "keystone.log"},
                    "database": {"connection": f"{database}/keystone"},
                    "fernet_tokens": {"key_repository": keys / "fernet"},
                    "credential": {"key_repository": keys / "credential"},
                    "cache": {"enabled": "true", "backend": "dogpile.cache.memory"},
                    "catalog": {"caching": "false"},  # each worker would cache the catalogue from before Cinder
                    "role": {"caching": "false"},  # and roles that were revoked since
                }
            )
        )
        rootwrap = (etc / "rootwrap.conf").read_text().replace("/etc/cinder/rootwrap.d", str(etc / "rootwrap.d"))
        (self.cinder_conf.parent / "rootwrap.conf").write_text(rootwrap)
        self.cinder_conf.write_text(
            ini(
                {
                    "DEFAULT": {
                        "host": "lab",
                        "my_ip": "127.0.0.1",
                        "state_path": self.cinder_conf.parent,
                        "log_dir": log,
                        "transport_url": f"rabbit://guest:guest@127.0.0.1:{self.ports['rabbit']}//",
                        "rpc_response_timeout": 30,
                        "auth_strategy": "keystone",
                        "api_paste_config": etc / "api-paste.ini",
                        "resource_query_filters_file": etc / "resource_filters.json",
                        "rootwrap_config": self.cinder_conf.parent / "rootwrap.conf",
                        "enabled_backends": "ceph",
                        "default_volume_type": "ceph",
                        "glance_api_servers": "http://127.0.0.1:9",
                        # report a stopped service as down after ten seconds instead of a minute
                        "report_interval": 2,
                        "service_down_time": 10,
                        "periodic_interval": 10,
                        "scheduler_driver_init_wait_time": 5,
                        "backend_stats_polling_interval": 5,
                    },
                    "ceph": {
                        "volume_driver": "cinder.volume.drivers.rbd.RBDDriver",
                        "volume_backend_name": "ceph",
                        "rbd_ceph_conf": self.ceph_conf,
                        "rbd_user": "cinder",
                        "rbd_pool": "volumes",
                        "rados_connect_timeout": 10,
                        "max_over_subscription_ratio": 1000,  # the guide's volumes have 50 GB, of which 3 MiB are written
                    },
                    "database": {"connection": f"{database}/cinder"},
                    "oslo_concurrency": {"lock_path": self.cinder_conf.parent / "lock"},
                    "coordination": {"backend_url": f"file://{self.cinder_conf.parent / 'coordination'}"},
                    "keystone_authtoken": {
                        "www_authenticate_uri": self.keystone_url,
                        "auth_url": self.keystone_url,
                        "auth_type": "password",
                        "username": "admin",
                        "password": PASSWORD,
                        "project_name": "admin",
                        "user_domain_id": "default",
                        "project_domain_id": "default",
                    },
                    "oslo_messaging_notifications": {"driver": "noop"},
                    "oslo_policy": {"policy_file": self.cinder_conf.parent / "policy.yaml"},
                }
            )
        )
        force = {
            f"volume_extension:{kind}_admin_actions:force_delete": "role:member" for kind in ("snapshot", "volume")
        }
        (self.cinder_conf.parent / "policy.yaml").write_text(json.dumps(force))
        # both parse the command line, which is gunicorn's
        (self.folder / "wsgi" / "keystone_app.py").write_text(
            "import sys\n\nsys.argv = sys.argv[:1]\nfrom keystone.wsgi.api import application\n"
        )
        (self.folder / "wsgi" / "cinder_app.py").write_text(
            'import os\nimport sys\n\nsys.argv = ["cinder-api", "--config-file", os.environ["CINDER_CONF"]]\n'
            "from cinder.wsgi.api import application\n"
        )

    @property
    def keystone_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['keystone']}/v3"

    def make_databases(self) -> None:
        if (self.state / "databases").exists():
            return
        with psycopg.connect(
            host="127.0.0.1", port=self.ports["postgres"], user="lab", dbname="postgres", autocommit=True
        ) as server:
            for name in "keystone", "cinder":
                server.execute(f"DROP DATABASE IF EXISTS {name}")  # left by an interrupted start
                server.execute(f"CREATE DATABASE {name}")
        keystone = [self.programs / "keystone-manage", "--config-file", self.keystone_conf]
        as_root = ["--keystone-user", "root", "--keystone-group", "root"]
        urls = [
            word for kind in ("admin", "public", "internal") for word in (f"--bootstrap-{kind}-url", self.keystone_url)
        ]
        with ThreadPoolExecutor() as pool:
            cinder = [self.programs / "cinder-manage", "--config-file", self.cinder_conf, "db", "sync"]
            synced = pool.submit(run, *cinder)
            run(*keystone, "fernet_setup", *as_root)
            run(*keystone, "credential_setup", *as_root)
            run(*keystone, "db_sync")
            run(*keystone, "bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-region-id", REGION, *urls)
            synced.result()
        (self.state / "databases").touch()

    def write_clouds(self) -> None:
        users = {"admin": ("admin", "admin"), **USERS}
        common = {"auth_url": self.keystone_url, "password": PASSWORD}
        common |= {"user_domain_id": "default", "project_domain_id": "default"}
        clouds = {
            # for the tests' own requests; the driver has its own retries
            name: {
                "region_name": REGION,
                "connect_retries": 3,
                "auth": {**common, "username": name, "project_name": project},
            }
            for name, (project, _role) in users.items()
        }
        self.clouds.write_text(json.dumps({"clouds": clouds}, indent=2))  # JSON is YAML

    def fill_catalogue(self) -> None:
        """Create Cinder's endpoint, the projects, the users and the volume type, unless they exist."""

        def answers() -> bool:
            try:
                connect(self, "admin").authorize()
            except Exception:  # openstacksdk raises many errors for "not yet"
                return False
            return True

        if not wait_until(answers, seconds=60):
            raise SystemExit(f"Keystone does not come up; see {self.folder / 'log'}")
        cloud = connect(self, "admin")
        keystone, url = cloud.identity, f"http://127.0.0.1:{self.ports['cinder']}/v3"
        service = next(iter(keystone.services(type="block-storage")), None)
        if service is None:
            service = keystone.create_service(name="cinder", type="block-storage")
            for kind in "public", "internal", "admin":
                keystone.create_endpoint(service_id=service.id, interface=kind, region_id=REGION, url=url)
        for name, (project_name, role) in USERS.items():
            project = keystone.find_project(project_name) or keystone.create_project(name=project_name)
            user = keystone.find_user(name) or keystone.create_user(
                name=name, password=PASSWORD, default_project_id=project.id
            )
            keystone.assign_project_role_to_user(project, user, keystone.find_role(role))
            if name in ALSO_MEMBER_OF:
                also = keystone.find_project(ALSO_MEMBER_OF[name])
                keystone.assign_project_role_to_user(also, user, keystone.find_role(role))
        cinder = connect(self, "admin").block_storage
        if not cinder.find_type("ceph"):
            cinder.create_type(name="ceph", extra_specs={"volume_backend_name": "ceph"})


def connect(lab: Lab, cloud: str) -> Any:
    import openstack

    config = openstack.config.OpenStackConfig(config_files=[str(lab.clouds)])
    return openstack.connection.Connection(config=config.get_one(cloud=cloud))


def run(
    *arguments: Any, check: bool = True, env: dict[str, str] | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in arguments]
    done = subprocess.run(command, env=os.environ | (env or {}), input=stdin or "", capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done


def ini(sections: dict[str, dict[str, Any]]) -> str:
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in section.items())
        for name, section in sections.items()
    )


def process_start(pid: int) -> str:
    """Return the start of a process in clock ticks, which with the PID identifies it, or an empty string if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if stat[0] == "Z" else stat[19]


def is_group_alive(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(process_group) == group and state != "Z":
            return True
    return False


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.25)
    return True


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in {"start", "stop", "clear"}:
        raise SystemExit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that work in progress ends cleanly
    lab = Lab(Path(arguments[1]) if len(arguments) > 1 else DEFAULT_FOLDER)
    getattr(lab, arguments[0])()


if __name__ == "__main__":
    main(sys.argv[1:])
