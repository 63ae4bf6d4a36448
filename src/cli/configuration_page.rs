//! Checks that docs/configuration.md matches the command line. The tables are generated from clap's definitions.

use std::{fmt::Write as _, fs, path::Path};

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use super::Cli;

/// The long-running subcommands, which the page documents.
const SUBCOMMANDS: [&str; 3] = ["router", "controller", "run"];

/// Environment variable that makes the test rewrite the page.
const WRITE: &str = "WEIR_WRITE_DOCS";

#[test]
fn configuration_page_matches_command_line() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let before = fs::read_to_string(&path).unwrap();
    let mut page = before.clone();
    let mut cli = Cli::command();
    cli.build();
    for name in SUBCOMMANDS {
        page = with_table(&page, name, &table(cli.find_subcommand(name).unwrap()));
    }
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &page).unwrap();
    }
    assert!(
        page == before || std::env::var_os(WRITE).is_some(),
        "docs/configuration.md does not match the command line: run `make docs`"
    );
}

/// Replaces the table between the two markers of a subcommand.
fn with_table(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (
        format!("<!-- flags of weir {name}: made by make docs -->\n"),
        format!("<!-- end of the flags of weir {name} -->"),
    );
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{begin}\n{table}\n{end}{after}")
}

fn table(command: &Command) -> String {
    let mut table = "| flag | variable | default | what it is |\n| --- | --- | --- | --- |\n".to_owned();
    let flags = command.get_arguments().filter(|flag| {
        let is_help = matches!(
            flag.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        );
        !is_help && !flag.is_hide_set() && !flag.is_positional()
    });
    for flag in flags {
        writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            usage(flag),
            code(flag.get_env().and_then(|name| name.to_str())),
            default(flag),
            help(flag)
        )
        .unwrap();
    }
    table
}

fn usage(flag: &Arg) -> String {
    let name = format!("--{}", flag.get_long().unwrap());
    let choices = flag.get_possible_values();
    let takes_value = flag.get_action().takes_values();
    let value = match flag.get_value_names() {
        _ if !takes_value => return name,
        _ if !choices.is_empty() => choices
            .iter()
            .map(|choice| choice.get_name().to_owned())
            .collect::<Vec<_>>()
            .join("\\|"),
        Some(names) => names.iter().map(ToString::to_string).collect(),
        None => "VALUE".to_owned(),
    };
    format!("{name} {value}")
}

fn default(flag: &Arg) -> String {
    let values = flag.get_default_values().iter();
    let values: Vec<_> = values.filter_map(|value| value.to_str()).collect();
    match values.as_slice() {
        _ if !flag.get_action().takes_values() => String::new(),
        [] if flag.is_required_set() => "required".to_owned(),
        [] => String::new(),
        values => code(Some(&values.join(","))),
    }
}

fn code(text: Option<&str>) -> String {
    text.map_or_else(String::new, |text| format!("`{text}`"))
}

/// The help text as a table cell. clap strips the trailing period of a single sentence.
fn help(flag: &Arg) -> String {
    let help = flag.get_long_help().or_else(|| flag.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    help.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}
