"""The proof on one CPU: a large teacher and a small student of the embedded family, on two tasks, real all the way."""
