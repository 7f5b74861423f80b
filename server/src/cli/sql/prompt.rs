//! The interactive prompt, on reedline.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use reedline::{
    Color, ColumnarMenu, Completer, CompletionResult, DefaultHinter, Emacs, FileBackedHistory,
    Highlighter, KeyCode, KeyModifiers, MenuBuilder, Prompt, PromptEditMode, PromptHistorySearch,
    Reedline, ReedlineEvent, ReedlineMenu, Signal, Span, StyledText, Suggestion, ValidationResult,
    Validator, default_emacs_keybindings,
};

use super::failure::Failure;
use super::meta;
use super::names::{NameCache, WORDS};
use super::shell::{Next, Shell};
use crate::cli::state::{state_file, variable};
use crate::cli::{CliError, CliResult};
use crate::postgres::lexer::{self, Kind};

/// Statements kept in the history.
const HISTORY_MAX: usize = 10_000;
const MENU: &str = "names";

/// Reads and runs until the user leaves.
///
/// # Errors
/// The terminal cannot be used.
pub async fn run(mut shell: Shell) -> CliResult {
    println!(
        "shoal {} at {}; \\? for help, \\q to quit",
        env!("CARGO_PKG_VERSION"),
        shell.server()
    );
    let mut editor = editor(Arc::clone(shell.names()), &shell.schema);
    loop {
        let prompt = Line(shell.schema.clone());
        // The editor blocks; other tasks (the HTTP connections) move to another thread.
        let read = tokio::task::block_in_place(|| editor.read_line(&prompt))
            .map_err(|e| CliError::failed(format!("cannot read from the terminal: {e}")))?;
        let text = match read {
            Signal::Success(text) => text,
            Signal::CtrlC => continue,
            Signal::CtrlD => return Ok(std::process::ExitCode::SUCCESS),
            _ => continue,
        };
        let before = shell.schema.clone();
        match shell.lines(&text).await {
            Ok(Next::On) => {}
            Ok(Next::Quit) => return Ok(std::process::ExitCode::SUCCESS),
            // Shown already, with its place.
            Err(Failure::Refused(_)) => {}
            Err(Failure::Output) => return Ok(std::process::ExitCode::SUCCESS),
            Err(Failure::Other(error)) => eprintln!("{}", error.message),
            Err(Failure::Cancelled) => eprintln!("cancelled"),
        }
        if shell.schema != before {
            editor = editor.with_completer(Box::new(Names {
                cache: Arc::clone(shell.names()),
                schema: shell.schema.clone(),
            }));
        }
    }
}

fn editor(cache: Arc<NameCache>, schema: &str) -> Reedline {
    let mut keys = default_emacs_keybindings();
    keys.add_binding(
        KeyModifiers::NONE,
        KeyCode::Tab,
        ReedlineEvent::UntilFound(vec![
            ReedlineEvent::Menu(MENU.to_owned()),
            ReedlineEvent::MenuNext,
        ]),
    );
    keys.add_binding(
        KeyModifiers::SHIFT,
        KeyCode::BackTab,
        ReedlineEvent::MenuPrevious,
    );
    let mut editor = Reedline::create()
        .with_edit_mode(Box::new(Emacs::new(keys)))
        .with_completer(Box::new(Names {
            cache,
            schema: schema.to_owned(),
        }))
        .with_quick_completions(true)
        .with_partial_completions(true)
        .with_menu(ReedlineMenu::EngineCompleter(Box::new(
            ColumnarMenu::default().with_name(MENU),
        )))
        .with_validator(Box::new(Complete))
        .with_highlighter(Box::new(Colours))
        .with_hinter(Box::new(
            DefaultHinter::default().with_style(Color::DarkGray.normal()),
        ))
        .use_bracketed_paste(true);
    if let Some(path) = history_file() {
        match FileBackedHistory::with_file(HISTORY_MAX, path.clone()) {
            Ok(history) => editor = editor.with_history(Box::new(history)),
            Err(error) => eprintln!("no history: {}: {error}", path.display()),
        }
    }
    editor
}

/// `$SHOAL_HISTORY`, else `shoal/sql_history` where the user's programs keep their state.
fn history_file() -> Option<PathBuf> {
    variable("SHOAL_HISTORY").or_else(|| state_file("sql_history"))
}

/// The prompt: the current schema.
struct Line(String);

impl Prompt for Line {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.0)
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Owned(format!("{:1$}- ", "", self.0.chars().count()))
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(history: {}) ", search.term))
    }
}

/// Enter ends a statement after its semicolon, and a command at once.
struct Complete;

impl Validator for Complete {
    fn validate(&self, text: &str) -> ValidationResult {
        if text.trim().is_empty() || meta::parse(text).is_some() || lexer::is_complete(text) {
            ValidationResult::Complete
        } else {
            ValidationResult::Incomplete
        }
    }
}

struct Names {
    cache: Arc<NameCache>,
    schema: String,
}

impl Completer for Names {
    fn complete(&mut self, line: &str, pos: usize) -> CompletionResult {
        // The editor runs inside `block_in_place`, where waiting is allowed.
        let names = tokio::runtime::Handle::current().block_on(self.cache.names());
        let (start, found) = names.complete(line, pos, &self.schema);
        let suggestions: Vec<Suggestion> = found
            .into_iter()
            .map(|value| Suggestion {
                append_whitespace: !value.ends_with(['(', ')']),
                value,
                span: Span::new(start, pos.max(start)),
                ..Default::default()
            })
            .collect();
        CompletionResult::fresh(suggestions)
    }
}

struct Colours;

impl Highlighter for Colours {
    fn highlight(&self, line: &str, _cursor: usize) -> StyledText {
        let mut out = StyledText::new();
        if meta::parse(line).is_some() {
            out.push((Color::Cyan.normal(), line.to_owned()));
            return out;
        }
        for token in lexer::tokens(line) {
            let text = &line[token.range];
            let style = match token.kind {
                Kind::Word if is_word(text) => Color::Blue.bold(),
                Kind::Text => Color::Green.normal(),
                Kind::Number | Kind::Parameter => Color::Magenta.normal(),
                Kind::Comment => Color::DarkGray.normal(),
                _ => Color::Default.normal(),
            };
            out.push((style, text.to_owned()));
        }
        out
    }
}

fn is_word(text: &str) -> bool {
    WORDS
        .iter()
        .flat_map(|words| words.split(' '))
        .any(|word| word.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enter_runs_whole_statements_and_commands_only() {
        let ready = |text: &str| matches!(Complete.validate(text), ValidationResult::Complete);
        assert!(ready("select 1;"));
        assert!(ready("\\d cpu"));
        assert!(ready(""));
        assert!(!ready("select 1"));
        assert!(!ready("select ';"));
    }

    #[test]
    fn colours_change_no_character() {
        let text = "SELECT 'é', 1.5 -- x\nFROM \"T\" WHERE a = $1";
        assert_eq!(Colours.highlight(text, 0).raw_string(), text);
    }
}
