"""Who somebody is: certificate and password, one conversation over several connections.

`contract` says what a method is, `login` holds the conversations, `standing` is the word of
the store on whether a user and a certificate are still welcome.
"""
