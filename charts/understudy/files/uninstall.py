"""Deletes the release's LLMServices and waits until the controller has let go of them; `helm uninstall` runs it before anything else goes.
The pod of the last `helm test` goes with them.

Standard library only. Exit status 1 and the names of what is left where the time is up: then nothing has been removed.
"""
# ruff: noqa: S310, T201  (the addresses are the chart's own; a pod's output is its log)

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

FOLDER = os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount")
SERVER = os.environ.get("API_SERVER") or "https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}".format_map(
    os.environ
)
RESOURCES = "/apis/understudy.dev/v1alpha1"
PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "2"))


def call(method, path):
    """The answer's JSON; None where there is no such thing."""
    with open(f"{FOLDER}/token") as file:
        headers = {"Authorization": f"Bearer {file.read().strip()}"}
    request = urllib.request.Request(SERVER + path, method=method, headers=headers)
    secure = SERVER.startswith("https:")
    context = ssl.create_default_context(cafile=f"{FOLDER}/ca.crt") if secure else None
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def services(namespace):
    """(namespace, name, whether it is being deleted) of each LLMService; none where the definition is gone."""
    path = f"{RESOURCES}/namespaces/{namespace}/llmservices" if namespace else f"{RESOURCES}/llmservices"
    found = (call("GET", path) or {}).get("items", [])
    return [
        (one["metadata"]["namespace"], one["metadata"]["name"], "deletionTimestamp" in one["metadata"]) for one in found
    ]


def main():
    namespace = os.environ["NAMESPACE"]
    deadline = time.monotonic() + float(os.environ["TIMEOUT_SECONDS"])
    trouble = ""
    left = []
    while time.monotonic() < deadline:
        try:
            left = services(namespace)
            if not left:
                call("DELETE", os.environ["TEST_POD"])
                print("no LLMService is left")
                return 0
            for where, name, going in left:
                if not going:
                    print(f"deleting {where}/{name}", flush=True)
                    call("DELETE", f"{RESOURCES}/namespaces/{where}/llmservices/{name}")
            trouble = ""
        except (
            OSError
        ) as error:  # the API server may be away for a while; what it refuses is no better later, but costs only time
            trouble = f"; the API server's last word: {error}"
        time.sleep(PAUSE_SECONDS)
    names = ", ".join(f"{where}/{name}" for where, name, _ in left) or "LLMServices"
    print(
        f"time is up, still there: {names}{trouble}. Does the controller run? Its log says what it waits for.",
        file=sys.stderr,
    )
    return 1


sys.exit(main())
