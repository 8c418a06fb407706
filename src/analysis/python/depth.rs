//! How deeply a source may nest, by its tokens alone: what walks the tree needs that much stack.

use ruff_python_ast::token::TokenKind;
use ruff_python_parser::{Mode, lexer};

/// What nests in one bracket, or outside of all.
#[derive(Default)]
struct Level {
    /// Tokens since the last comma: `a + a + a` nests once a token.
    chain: usize,
    /// A lambda's body goes on after the commas of its parameters.
    lambdas: usize,
}

/// An upper bound of how many expressions and blocks of the source stand inside each other.
pub fn depth(source: &str) -> usize {
    let mut lexer = lexer::lex(source, Mode::Ipython);
    let mut levels = vec![Level::default()];
    let (mut blocks, mut now, mut deepest) = (0usize, 0usize, 0);
    loop {
        let kind = lexer.next_token();
        let top = levels.len() - 1;
        match kind {
            TokenKind::EndOfFile => return deepest,
            TokenKind::Newline => {
                levels.clear();
                levels.push(Level::default());
                now = 0;
            }
            TokenKind::Indent => blocks += 1,
            TokenKind::Dedent => blocks = blocks.saturating_sub(1),
            TokenKind::Comma | TokenKind::Semi => {
                now -= levels[top].chain;
                levels[top].chain = 0;
            }
            TokenKind::Lambda => {
                levels[top].lambdas += 1;
                now += 1;
            }
            TokenKind::Rpar | TokenKind::Rsqb | TokenKind::Rbrace if top > 0 => {
                now -= levels.pop().map_or(0, |level| level.chain + level.lambdas);
            }
            _ => {
                levels[top].chain += 1;
                now += 1;
                if matches!(kind, TokenKind::Lpar | TokenKind::Lsqb | TokenKind::Lbrace) {
                    levels.push(Level::default());
                }
            }
        }
        // A block costs a few calls more than an expression.
        deepest = deepest.max(now + 4 * blocks);
    }
}
