f1.c
