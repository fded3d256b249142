# Three agents on one login: nomad job run agent.nomad.hcl
job "claude" {
  type = "batch"
  group "agents" {
    count = 3
    task "agent" { # Nomad
      driver       = "docker"
      kill_timeout = "30s"
      env {
        CLAUDE_CONFIG_DIR = "/srv/claude/config"
      }
      config {
        image   = "agent"
        command = "claude-run"
        args    = ["--lock", "refresh", "--", "-p", "hi"]
        volumes = ["/srv/claude:/srv/claude", "/usr/local/bin/claude-run:/usr/local/bin/claude-run:ro"]
      }
    }
  }
}
