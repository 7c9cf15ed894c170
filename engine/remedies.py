"""What to do about a storage that cannot be used: one table for the engine, the agent, the controller and bmctl.

A failure has a `reason`, which programs compare, and where the same reason has several origins a fact `cause`:

    STORAGE_UNREACHABLE         dns  refused  timed_out  no_route  bind  lost        the way to the server, in its order
    STORAGE_UNTRUSTED           untrusted  expired  hostname  protocol
    STORAGE_HOST_KEY_CHANGED
    STORAGE_LOGIN_FAILED        key  password  account
    STORAGE_CLOCK_SKEWED
    STORAGE_THROTTLED
    STORAGE_BUCKET_NOT_FOUND
    STORAGE_PATH_INVALID        missing  not_a_folder
    STORAGE_PERMISSION_DENIED   read_only
    STORAGE_FULL                quota  files
    RCLONE_MISSING  RCLONE_CONFIG_INVALID  RCLONE_REMOTE_REFUSED

A row without a cause holds for the whole reason. docs/storages.md has the same table for people; a test holds them together.
"""

REMEDIES: dict[tuple[str, str], str] = {
    ("STORAGE_UNREACHABLE", ""): "Check the network, the address and the port",
    ("STORAGE_UNREACHABLE", "dns"): "Check the host name, and that this hypervisor's name server knows it",
    ("STORAGE_UNREACHABLE", "refused"): "Check the port, and that the service runs there",
    ("STORAGE_UNREACHABLE", "timed_out"): "Check the address and the port, and that no firewall on the way drops the packets",
    ("STORAGE_UNREACHABLE", "no_route"): "Check the address, and this hypervisor's routes and gateway",
    ("STORAGE_UNREACHABLE", "bind"): "Choose a bind address that this hypervisor has, or leave it empty",
    ("STORAGE_UNREACHABLE", "lost"): "Check the server's log and the network; the connection was made, and then lost",
    ("STORAGE_UNTRUSTED", ""): "Check the port, and that the service there speaks TLS",
    ("STORAGE_UNTRUSTED", "untrusted"): "Give the certificate of the authority that signed the server's, if it is not a public one",
    ("STORAGE_UNTRUSTED", "expired"): "Renew the server's certificate, and check this hypervisor's clock",
    ("STORAGE_UNTRUSTED", "hostname"): "Use the host name that the server's certificate is for",
    ("STORAGE_UNTRUSTED", "protocol"): "Check the port, and which versions of TLS the server speaks",
    ("STORAGE_HOST_KEY_CHANGED", ""): "If the server was reinstalled, pin its new key; else someone may be in between",
    ("STORAGE_LOGIN_FAILED", ""): "Check the user name, and its key or password",
    ("STORAGE_LOGIN_FAILED", "key"): "Check the user name, and that its authorized_keys there has this key",
    ("STORAGE_LOGIN_FAILED", "password"): "Check the user name and the password",
    ("STORAGE_LOGIN_FAILED", "account"): "Check that the account or access key exists and is not disabled or expired",
    ("STORAGE_CLOCK_SKEWED", ""): "Set this hypervisor's clock right, by NTP",
    ("STORAGE_THROTTLED", ""): "Ask for less at a time: a lower concurrency, or fewer backups side by side",
    ("STORAGE_BUCKET_NOT_FOUND", ""): "Make the bucket, or correct its name, the region and the endpoint",
    ("STORAGE_PATH_INVALID", ""): "Check the path",
    ("STORAGE_PATH_INVALID", "missing"): "Make the folder that is missing, or correct the path",
    ("STORAGE_PATH_INVALID", "not_a_folder"): "Use a path that is a folder, or is not there yet",
    ("STORAGE_PERMISSION_DENIED", ""): "Let the user list, read, write, rename and delete below the storage's path",
    ("STORAGE_PERMISSION_DENIED", "read_only"): "Mount or export the file system for writing",
    ("STORAGE_FULL", ""): "Free room there, or let retention remove old backups",
    ("STORAGE_FULL", "quota"): "Raise the quota there, or let retention remove old backups",
    ("STORAGE_FULL", "files"): "The file system has no room for further files (inodes): remove some, or use a larger one",
    ("RCLONE_MISSING", ""): "Install rclone 1.57 or newer on this hypervisor (Debian 12's package is new enough)",
    ("RCLONE_CONFIG_INVALID", ""): "Configure the remote on this hypervisor, in a file of the agent's user with the mode 0600",
    ("RCLONE_REMOTE_REFUSED", ""): "Choose another remote or type of storage, or set the storage's option force if it has to be",
}  # fmt: skip


def remedy(reason: str, cause: str = "") -> str:
    """Return what to do, without a full stop: for the cause if there is a row for it, else for the reason; "" for none."""
    return REMEDIES.get((reason, cause)) or REMEDIES.get((reason, ""), "")
