"""Mail clients that come from an address of their own and count what goes over the wire."""

import imaplib
import poplib
import selectors
import smtplib
import socket
import ssl
import threading
from email.message import EmailMessage
from email.policy import SMTP as WIRE
from typing import Any, Self, cast

import pytest


def unchecked() -> ssl.SSLContext:
    """TLS with a server whose certificate nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def letter(sender: str, *recipients: str, subject: str, size: int = 200) -> EmailMessage:
    """A message with a body of so many octets and a Message-ID that tells the subject."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, ", ".join(recipients), subject
    message["Message-ID"] = f"<{subject.replace(' ', '.')}@client.example>"
    message.set_content("x" * 63 + "\n" + ("y" * 63 + "\n") * (size // 64 - 1))
    return message


def smtp(port: int, source: str, helo: str = "client.example") -> smtplib.SMTP:
    """A session from this address, greeting with EHLO."""
    session = smtplib.SMTP("127.0.0.1", port, local_hostname=helo, timeout=30, source_address=(source, 0))
    session.ehlo()
    return session


def say(session: smtplib.SMTP, subject: str, sender: str, *recipients: str, size: int = 200) -> tuple[str, bytes]:
    """Sends a message that has to be taken; the server's answer, and what was sent."""
    content = letter(sender, *recipients, subject=subject, size=size).as_bytes(policy=WIRE)
    assert session.mail(sender)[0] == 250
    for recipient in recipients:
        assert session.rcpt(recipient)[0] == 250
    code, answer = session.data(content)
    assert code == 250, answer
    return answer.decode(), content


def guess(session: smtplib.SMTP, *users: str) -> None:
    """Tries one wrong password for each account, by AUTH PLAIN."""
    for session.user in users:
        session.password = "hunter2"
        with pytest.raises(smtplib.SMTPAuthenticationError):
            session.auth("PLAIN", session.auth_plain)


class Pop3(poplib.POP3):
    """Counts the octets read and sent since `forget` was called."""

    def __init__(self, port: int, source: str) -> None:
        self._from = source
        self.received = self.sent = 0
        super().__init__("127.0.0.1", port, timeout=30)

    def forget(self) -> None:
        self.received = self.sent = 0

    def _create_socket(self, timeout: float) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout, source_address=(self._from, 0))

    def _getline(self) -> tuple[bytes, int]:
        line, octets = super()._getline()  # type: ignore[misc]  # not in its stub
        self.received += octets
        return line, octets

    def _putline(self, line: bytes) -> None:
        self.sent += len(line) + 2
        super()._putline(line)  # type: ignore[misc]  # not in its stub


class Imap(imaplib.IMAP4):
    """Counts the octets read and sent since `forget` was called."""

    def __init__(self, port: int, source: str) -> None:
        self._from = source
        self.received = self.sent = 0
        super().__init__("127.0.0.1", port, timeout=30)

    def forget(self) -> None:
        self.received = self.sent = 0

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout, source_address=(self._from, 0))

    def read(self, size: int) -> bytes:
        data = super().read(size)
        self.received += len(data)
        return data

    def readline(self) -> bytes:
        data = super().readline()
        self.received += len(data)
        return data

    def shutdown(self) -> None:
        self.received += len(self.file.read())  # the answer to LOGOUT, which imaplib does not wait for
        super().shutdown()

    def send(self, data: Any) -> None:
        self.sent += len(data)
        super().send(data)


class Relay:
    """A port whose connections go on to a server from an address of choice, for clients that cannot choose theirs."""

    def __init__(self, port: int, source: str) -> None:
        self._to, self._source = port, source
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to), 30, source_address=(self._source, 0))
            self._threads.append(threading.Thread(target=self._pass_on, args=(near, far), daemon=True))
            self._threads[-1].start()

    @staticmethod
    def _pass_on(near: socket.socket, far: socket.socket) -> None:
        with near, far, selectors.DefaultSelector() as waiting:
            waiting.register(near, selectors.EVENT_READ, far)
            waiting.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in waiting.select(30):
                    here, there = cast(socket.socket, key.fileobj), cast(socket.socket, key.data)
                    try:
                        data = here.recv(65536)
                        there.sendall(data)
                    except OSError:
                        return
                    if not data:
                        return
