"""E-mail in tests: the messages sent, and an SMTP server in the test process with a reply for each recipient."""

import socketserver
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from threading import Event, Thread
from typing import Any

from django.core import mail
from django.utils import timezone

from cng_portal.mail.services import send_due

HANG_UP, SILENT = "hang up", "silent"


def sent_mails() -> list[Any]:
    """Send queued e-mails. Returns all messages that were sent in this test, oldest first."""
    send_due(now=timezone.now())
    return mail.outbox  # type: ignore[no-any-return]


class Handler(socketserver.StreamRequestHandler):
    server: "SMTPServer"

    def handle(self) -> None:
        self.reply("220 mail.example.com")
        while line := self.rfile.readline():
            command = line.decode().strip()
            match command.split(":")[0].split(" ")[0].upper():
                case "RCPT":
                    address = command.split("<")[1].split(">")[0]
                    answer = self.server.answers.get(address, "250 OK")
                    if answer == HANG_UP:
                        return
                    if answer == SILENT:
                        self.server.is_silent.set()
                        self.server.closing.wait()
                        return
                    self.reply(answer)
                case "DATA":
                    self.reply("354 Go ahead")
                    self.take_message()
                case "QUIT":
                    self.reply("221 Bye")
                    return
                case _:
                    self.reply("250 OK")

    def take_message(self) -> None:
        lines = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line)
        message = message_from_bytes(b"".join(lines), policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.server.received.append(message)
        if self.server.after_message:
            self.server.after_message()
        self.server.has_received.set()
        self.reply(self.server.answers.get("DATA", "250 OK"))

    def reply(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


class SMTPServer(socketserver.ThreadingTCPServer):
    """`answers` has a reply by recipient, or HANG_UP or SILENT, and one to a whole message under "DATA"; `received` has the
    messages, `connections` their number."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, str] = {}
        self.received: list[EmailMessage] = []
        self.connections = 0
        self.closing, self.is_silent, self.has_received = Event(), Event(), Event()
        self.after_message: Callable[[], None] | None = None

    def process_request(self, request: object, client_address: object) -> None:
        self.connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def recipients(self) -> list[str]:
        return [message["To"] for message in self.received]


@contextmanager
def smtp_server() -> Iterator[SMTPServer]:
    with SMTPServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
