"""The one path of every dialect: a request in, events out.

    resolve name → Target → lease an instance → render the prompt → n sequences → parse → events

`Generation` does the first step when it is made, so that an unknown model is known before anything is waited
for; `Generation.events` does the rest. Nothing here knows HTTP.
"""
