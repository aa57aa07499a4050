"""Dovecot in a jail: POP3, IMAP, LMTP and SASL for a few accounts."""

from typing import Any

import pytest

from tests.live.servers import Jail

PACKAGES = ("dovecot-imapd", "dovecot-pop3d", "dovecot-lmtpd")
PASSWORDS = {"alice@gw.example": "correct horse", "bob@gw.example": "battery staple"}
LOG = "/var/log/dovecot.log"

# Wrong passwords are answered at once: no delay, no penalty that grows.
_COMMON = """
protocols = pop3 imap lmtp
listen = 127.0.0.1
log_path = {log}
auth_mechanisms = plain login
auth_verbose = yes
auth_failure_delay = 0 secs
first_valid_uid = 5000
ssl = yes
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service lmtp {{
  unix_listener {lmtp} {{
    mode = 0666
  }}
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  unix_listener {sasl} {{
    mode = 0666
  }}
}}
"""
_TWO_THREE = """
disable_plaintext_auth = no
ssl_cert = </etc/dovecot/both.pem
ssl_key = </etc/dovecot/both.pem
mail_location = maildir:~/Maildir
passdb {
  driver = passwd-file
  args = username_format=%u /etc/dovecot/users
}
userdb {
  driver = static
  args = uid=vmail gid=vmail home=/var/mail/%u
}
"""
_TWO_FOUR = """
auth_allow_cleartext = yes
ssl_server_cert_file = /etc/dovecot/both.pem
ssl_server_key_file = /etc/dovecot/both.pem
mail_driver = maildir
mail_path = ~/Maildir
passdb passwd-file {
  auth_username_format = %{user}
  passwd_file_path = /etc/dovecot/users
}
userdb static {
  fields {
    uid = vmail
    gid = vmail
    home = /var/mail/%{user}
  }
}
"""


class Dovecot:
    """A running Dovecot.

    Args:
        jail: holds PACKAGES.
        sockets: folder in the jail for its sockets `lmtp` and `sasl`.
    """

    def __init__(self, jail: Jail, sockets: str = "/run/dovecot/live") -> None:
        self.jail = jail
        self.lmtp, self.sasl = f"{sockets}/lmtp", f"{sockets}/sasl"
        self.pop3, self.imap = jail.programs.free_ports(2)
        jail.folder("/var/mail", "vmail")
        jail.folder("/var/lib/dovecot", "root")
        jail.folder(sockets, "root")
        jail.certificate("/etc/dovecot/both.pem")
        users = "".join(f"{user}:{{PLAIN}}{password}\n" for user, password in PASSWORDS.items())
        jail.write("/etc/dovecot/users", users, owner="dovecot", mode=0o640)
        jail.write("/etc/dovecot/dovecot.conf", self._configuration())
        jail.programs.also.append(jail.path(LOG))
        self.process = jail.start("dovecot", "/usr/sbin/dovecot", "-F")
        jail.programs.wait("Dovecot", self._ready, 30, self.process)

    def _configuration(self) -> str:
        version = tuple(
            int(n) for n in self.jail.run("/usr/sbin/dovecot", "--version").stdout.split(" ")[0].split(".")[:2]
        )
        common = _COMMON.format(log=LOG, imap=self.imap, pop3=self.pop3, lmtp=self.lmtp, sasl=self.sasl)
        if version >= (2, 4):
            return f"dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n{common}{_TWO_FOUR}"
        if version < (2, 3):
            pytest.skip(f"Dovecot {version[0]}.{version[1]} is too old for this configuration")
        return common + _TWO_THREE

    def _ready(self) -> Any:
        return all(self.jail.path(name).is_socket() for name in (self.lmtp, self.sasl))

    def stop(self) -> None:
        """Lets it write what it has to say at its end."""
        self.process.terminate()
        self.process.wait(20)
