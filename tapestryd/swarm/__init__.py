"""The others: everything that crosses to another machine. The only room that imports hivemind."""
