// Package hostile holds the tests which show that a repository full of tricks
// gains nothing, neither on the machine of the person who runs mayfly in it
// nor beyond the environment. Each trick comes with a control: the same trick
// works where there is no mayfly.
package hostile
