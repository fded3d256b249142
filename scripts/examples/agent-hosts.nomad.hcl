# Three agents on any clients, with etcd for their common lock
job "claude" {
  type = "batch"
  group "agents" {
    count = 3
    task "agent" { # Nomad, on any client; with a lock manager in the file system, leave the last three variables out
      driver       = "docker"
      kill_timeout = "30s"
      env {
        CLAUDE_CONFIG_DIR      = "/srv/claude/config"
        CLAUDE_RUN_LOCK_HELPER = "etcdctl lock --ttl 30 claude/factory"
        ETCDCTL_API            = "3"
        ETCDCTL_ENDPOINTS      = "http://10.0.0.1:2379,http://10.0.0.2:2379,http://10.0.0.3:2379"
      }
      config {
        image   = "agent"
        command = "claude-run"
        args    = ["--lock", "refresh", "--", "-p", "hi"]
        volumes = ["/srv/claude:/srv/claude"]
      }
    }
  }
}
