use super::*;

#[test]
fn parts_end_at_signs_and_capitals() {
    for (name, expected) in [
        ("my_ApiKey-2", &["my", "Api", "Key", "2"][..]),
        ("GITHUBToken", &["GITHUB", "Token"]),
        ("_authToken", &["auth", "Token"]),
        ("oauth2APIKeys", &["oauth2", "API", "Keys"]),
        ("", &[]),
        ("__", &[]),
    ] {
        assert_eq!(parts(name.as_bytes()).map(|part| &name[part]).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn names_say_what_is_secret() {
    let long = |length: usize| "x".repeat(length - 6) + "_token";
    let secret = [
        "api_2_key",
        "GH_PAT",
        "client_secret_id",
        "dbpass",
        "SMTPPASS",
        "ghkey",
        "x_claudepass",
        "claude_my_key",
        "FORGE_KEYS",
        "MYVAULT_KEY",
        "GITHUB_TOKENS",
        "my_openai_pass",
        "token2",
        "api_key1",
        "pwd",
        "MY_PWD",
        "PaSsWoRd",
        "dB_pAsSwOrD",
        "API_kEY",
        "fOrGe_ToKeN",
        "gH_key",
        "TOKENs_sEcReT",
        "API_TOKENS",
        "oauth_tokens",
        "accessTokens",
        "refreshtokens",
        "SLACK_BOT_TOKENS2",
        &long(2 * LONGEST),
    ];
    for name in secret {
        assert!(is_secret(name.as_bytes()), "{name}");
    }
    for name in [
        "HIGHLIGHT_KEYWORDS",
        "NIGHTLY_KEY",
        "HIGH_KEY",
        "GH_TOKEN_HOST",
        "CLAUDE_TOKEN_FILE",
        "PAT",
        "client_secret_name",
        "token_id",
        "api_monkey",
        "openai_my_key",
        "max_tokens",
        "robot_tokens",
        "whatsapp_tokens",
        "maxtokens",
        "cacheReadInputTokens",
        "api_input_tokens",
        "api_tokens_used",
        "PWD",
        &long(2 * LONGEST + 1),
    ] {
        assert!(!is_secret(name.as_bytes()), "{name}");
    }
    for (name, expected) in [("secret_description", true), ("type", true), ("id", false), ("value", false)] {
        assert_eq!(is_note(name.as_bytes()), expected, "{name}");
    }
    for (name, expected) in [("Pass", true), ("pwd2", true), ("db-password", true), ("db_pass", false)] {
        assert_eq!(is_password(name.as_bytes()), expected, "{name}");
    }
    for (name, expected) in [("AB_1", true), ("Ab", false), ("1_2", false)] {
        assert_eq!(is_loud(name.as_bytes()), expected, "{name}");
    }
}
