"""Answer grammars compiled to finite automata over tokens, for constrained decoding."""
