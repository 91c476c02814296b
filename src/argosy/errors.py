"""Every error that Argosy raises, and every text that it says.

    ArgosyError
    ├── RequestError            the caller's fault
    │   ├── InputError          400  a body, tensor, name or option is wrong
    │   ├── AuthError           401  no token, or a wrong one
    │   ├── NotFoundError       404  no such model, version, alias, deployment
    │   ├── ConflictError       409  the state forbids it now
    │   ├── TooLargeError       413  a body or tensor over its limit
    │   ├── PoisonError         422  the request kills workers
    │   └── NotAllowedError     403  needs an opt-in that was not given
    ├── LoadError               the server cannot take it now
    │   ├── OverloadedError     429  a queue is full, or a deadline cannot be met
    │   ├── UnavailableError    503  no replica is ready
    │   └── DeadlineError       504  the deadline passed
    └── FaultError              500  a fault of the server, the model or the machine
        ├── MessageError        500  a message between two processes is none, or too large
        ├── ModelError          500  the model's own code failed on this request
        ├── RegistryError       502  a registry does not answer, or not as it should
        └── StoreError          500  a file of the store is missing or damaged

Texts live in `MESSAGES`: what was wrong, expected, got, then a hint. An error is raised by its key:

    raise InputError("shape_mismatch", tensor="pixels", model="resnet50", version=3,
                     got=(1, 224, 224), expected=(-1, 3, 224, 224))
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, NamedTuple

__all__ = [
    "MESSAGES",
    "ArgosyError",
    "AuthError",
    "ConflictError",
    "DeadlineError",
    "FaultError",
    "GrpcCode",
    "InputError",
    "LoadError",
    "Message",
    "MessageError",
    "ModelError",
    "NotAllowedError",
    "NotFoundError",
    "OverloadedError",
    "PoisonError",
    "RegistryError",
    "RequestError",
    "StoreError",
    "TooLargeError",
    "UnavailableError",
    "list_choices",
]


class GrpcCode(IntEnum):
    """The status codes of gRPC that Argosy answers with."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Message(NamedTuple):
    """One text of the table: a `str.format` template, and a hint or nothing."""

    text: str
    hint: str = ""


MESSAGES: dict[str, Message] = {
    # names, references, options
    "bad_name": Message(
        "{kind} name {got!r} is not valid, expected [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}",
        "use letters, digits, dots, dashes and underscores, starting with a letter or digit",
    ),
    "bad_alias": Message(
        "Alias {got!r} is not valid: an alias is a name that is not an integer",
        "versions are numbers, aliases are words, such as champion",
    ),
    "bad_reference": Message(
        "Reference {got!r} is not valid, expected NAME, NAME@VERSION or NAME@ALIAS",
        "a version or an alias stands after @, such as digits@2",
    ),
    "unknown_choice": Message("Unknown {kind} {got!r}; known: {known}"),
    "unknown_recipe": Message(
        "Unknown recipe {got!r}; known: {known}", "a program of yours is named with its function: FILE.py:FUNCTION"
    ),
    "bad_option": Message("Option `{option}` is {got!r}, expected {expected}"),
    "bad_config": Message("Configuration of {component} from {source} is not valid: {detail}"),
    "cannot_ship": Message(
        "A training run with several workers has to be given to other processes, and part of it cannot be: {detail}",
        "open files, sockets, generators and the like are best made by the function that uses them",
    ),
    "group_differs": Message(
        "The workers of a training run do not do the same at one time: {kinds}",
        "a step of your own must call fit.minimize as often in each worker, whatever its rows are",
    ),
    "worker_lost": Message(
        "Worker {worker} of a training run is gone again and again: {detail}",
        "the system kills processes when memory runs out: fewer workers, or smaller batches, need less",
    ),
    "worker_failed": Message("A worker of a training run failed: {detail}"),
    "missing_extra": Message(
        "{feature} needs the package {package}, which is not installed",
        "pip install 'argosy[{extra}]'",
    ),
    "environment_failed": Message(
        "The environment of {name} cannot be built: {detail}",
        "see that the package index is reached and the disk has room, then try again: argosy environment build {name}",
    ),
    "environment_python": Message(
        "The environment of {name} needs Python {version}; this is {got}, and there is no python{version} on PATH",
        "install Python {version}, or uv, which brings one",
    ),
    "environment_loop": Message(
        "This process runs in the environment of {name} already",
        "if {name} cannot be imported, remove {folder}, and try again: it is built anew",
    ),
    "unsafe_cache": Message(
        "Folder {folder} can be written by other users, and programs in it are run",
        "take it from them (chown, chmod go-w), or set ARGOSY_CACHE to a folder of your own",
    ),
    # store
    "unknown_model": Message("Unknown model {name!r}; known: {known}", "argosy models lists them"),
    "unknown_version": Message("Model {name!r} has no version {version}; it has: {known}", "argosy models {name} lists them"),
    "unknown_alias": Message("Model {name!r} has no alias {alias!r}; it has: {known}"),
    "unwritable": Message("Cannot write {path}: {detail}"),
    "file_exists": Message(
        "File {path} is there already", "give another name, or have it replaced: --overwrite, in Python overwrite=True"
    ),
    "missing_file": Message("File {path} does not exist or cannot be read: {detail}"),
    "bad_onnx": Message("File {path} is not an ONNX model that can be served: {detail}"),
    "missing_locale": Message(
        "ONNX file {path} changes the case of text by the locale {locale}, which this machine does not have",
        "install it (on Debian: the package locales, then locale-gen {locale}), or write C.UTF-8 into the attribute `locale` "
        "of the file's StringNormalizer, which comes with glibc itself",
    ),
    "bad_external_data": Message(
        "ONNX file {path} names its weights file {location!r}, which is not a plain name beside it",
        "export the model with its external data in the same folder",
    ),
    "unsupported_type": Message("Tensor {tensor!r} has element type {got}, which no V2 datatype stands for; known: {known}"),
    "corrupt_blob": Message(
        "Blob {digest} of {what} is damaged: its content has digest {got}",
        "restore ARGOSY_HOME from a backup, or publish the version again",
    ),
    "missing_blob": Message("Blob {digest} of {what} is missing from the store"),
    "disk_full": Message("The store could not write {what}: {detail}"),
    "temp_full": Message(
        "There is no room for temporary files in {folder}: {detail}", "make some, or set TMPDIR to a folder that has room"
    ),
    "write_failed": Message("The store could not write {what}: {detail}", "check the disk and the permissions of ARGOSY_HOME"),
    "unpack_failed": Message(
        "The files of {what} can be unpacked neither in the store nor, as copies, among temporary files: {fault}; {detail}",
        "make the store writable, or {place}; TMPDIR names another folder for copies",
    ),
    "no_hard_links": Message(
        "The file system of {path} has no hard links, which the store needs: {detail}",
        "set ARGOSY_HOME to a folder on a local disk",
    ),
    "home_is_file": Message(
        "ARGOSY_HOME ({home}) is no folder: {path} is a file",
        "give a folder, which is made if it is not there: ARGOSY_HOME, --home",
    ),
    "store_busy": Message(
        "The store's database {path} was locked by another process for {timeout_s:.0f} s",
        "see which process holds it, and try again",
    ),
    "store_too_new": Message(
        "The store's database {path} has schema {got}, this Argosy knows them up to {known}",
        "use the newer Argosy that wrote it",
    ),
    "missing_database": Message(
        "The store's database {path} is missing or empty, while the store holds versions",
        "restore it from a backup; what runs goes on, and commands work again once it is there",
    ),
    "damaged_database": Message("The store's database {path} is damaged: {detail}", "restore ARGOSY_HOME from a backup"),
    "bad_manifest": Message("The description of {what} cannot be used: {detail}"),
    "bad_file_name": Message("File name {got!r} is not valid in an artifact: {detail}", "use a plain name, such as model.onnx"),
    "missing_entry": Message("Entry file {entry!r} is not among the files of the artifact: {known}"),
    "reserved_alias": Message(
        "Alias {alias!r} always means the newest version and cannot be set", "use another word, such as champion"
    ),
    "bad_golden": Message("The golden examples of model {model!r} are not usable: {detail}"),
    "no_golden": Message("Version {version} of model {name!r} has no golden examples: {detail}"),
    "example_fails": Message(
        "Version {version} of model {name!r} ran none of the examples that were made for it at its import: {detail}",
        "import it again with --sample and a few real rows; --no-rows where its first axes do not count rows",
    ),
    "code_not_allowed": Message(
        "Model {name!r} version {version} may run code of its maker (runtime {runtime}), which was not allowed",
        "say --allow-code (allow_code=True) if you trust its publisher",
    ),
    "bad_python_model": Message(
        "Python model {what} is not valid: {detail}", "docs/importing.md shows one, with the --signature that it is imported with"
    ),
    # registries
    "bad_location": Message(
        "Registry reference {got!r} is not valid: {detail}",
        "expected HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST], such as registry.example.com/team/iris:3",
    ),
    "bad_credentials": Message("The credentials in {source} cannot be used: {detail}"),
    "registry_unauthorized": Message(
        "Registry {host} asks for credentials of repository {repository}: {detail}",
        "log in with docker, podman or skopeo, or set ARGOSY_REGISTRY_USERNAME and ARGOSY_REGISTRY_PASSWORD",
    ),
    "registry_denied": Message("Registry {host} does not allow us {what}: {detail}", "use an account that may"),
    "insecure_registry": Message(
        "Registry {host} leads to {got}, which would be reached without TLS",
        "only this machine's own addresses are, or with --plain-http every one",
    ),
    "not_in_registry": Message("Registry {host} has no {what}: {detail}"),
    "registry_refused": Message("Registry {host} refuses {what}: {detail}"),
    "registry_unreachable": Message(
        "Registry {host} does not answer: {detail}",
        "check the host; --plain-http speaks to one without TLS, --ca-file trusts another authority",
    ),
    "bad_registry_answer": Message("The answer of registry {host} is not of the Distribution protocol: {detail}"),
    "blob_differs": Message(
        "Blob {digest} of {location} is not what it should be: {detail}",
        "nothing was kept; argosy push --verify, where the version is, sends again what is damaged there",
    ),
    "blob_stays_damaged": Message(
        "Blob {digest} of {location} was sent again, and the registry gives the damaged one still: {detail}",
        "have the blob deleted there, by its administrator if not by you, and push once more",
    ),
    "not_modelpack": Message(
        "{location} is no ModelPack artifact: {detail}", "push models with argosy push, or with another tool of ModelPack"
    ),
    "bad_layer": Message(
        "Layer {name!r} of {location} cannot be unpacked: {detail}",
        "fetch it with the tool that made it, and argosy import the files",
    ),
    "not_servable": Message(
        "{location} is a ModelPack artifact that cannot be a version: {detail}",
        "fetch its files alone with --files FOLDER, then argosy import makes a version of them",
    ),
    # files of other frameworks, opened in a confined process
    "not_confined": Message(
        "This machine cannot open a file that may be hostile safely: it cannot confine {missing}",
        "use Linux 5.13 or later with Landlock, or give the model as ONNX",
    ),
    "not_started": Message("Python {python} could not be started: {detail}"),
    "confined_timeout": Message(
        "{what} did not end within {timeout_s:g} s and was killed",
        "allow it more time, if you trust the file: argosy import --timeout SECONDS, in Python timeout_s",
    ),
    "confined_memory": Message(
        "{what} needs more memory than the {limit_gib:.1f} GiB that it may take",
        "allow it more, if you trust the file: argosy import --memory GIB, in Python memory_bytes",
    ),
    "confined_output": Message("{what} wrote more than {limit} bytes to its output and was killed"),
    "unknown_format": Message(
        "File {path} is of no format that can be imported, neither by its content nor by its suffix",
        "known formats: {known}, and files .onnx and .py",
    ),
    "format_mismatch": Message(
        "File {path} should be {expected}, but its content is that of {got}",
        "save the model again with the library that made it, under the suffix of its format; or name another --format",
    ),
    "bad_archive": Message(
        "File {path} is an archive that cannot be read safely: {detail}", "save the model again with the library that made it"
    ),
    "model_file_too_large": Message(
        "{path} has {what} of {got}, at most {limit} is taken", "a file that unfolds to many times its size is an attack"
    ),
    "bad_model_file": Message(
        "File {path} is not {title} that can be imported: {detail}",
        "save the model again with the library that made it, or as ONNX",
    ),
    "pickle_not_allowed": Message(
        "File {path} is {title}, which runs whatever code its maker put in when it is opened",
        "{instead}; or, if you trust its maker: --allow-pickle opens it in a process that reaches nothing",
    ),
    "needs_sample": Message(
        "The import of {title} needs sample rows: {detail}",
        "give a few real rows with --sample FILE: .npy, .npz with one array for each input, or .json",
    ),
    "bad_sample": Message("The sample rows do not fit the model: {detail}"),
    "needs_code": Message(
        "The import of {title} needs code, for the file holds weights alone",
        "give a function that builds the model: --code FILE.py:FUNCTION",
    ),
    "weights_differ": Message(
        "The weights in file {path} are not those of the model that the code builds: {detail}",
        "give the function that builds the model of which they were saved: --code FILE.py:FUNCTION",
    ),
    "bad_code": Message(
        "Code {code} cannot be used: {detail}",
        "it has the form FILE.py:FUNCTION, a function that is called without arguments and gives the model",
    ),
    "not_convertible": Message(
        "The model of {framework} can be served neither as ONNX nor in a form of its own that is no pickle. {detail}",
        "convert it to ONNX where it was trained, or write a Python model around it (.py)",
    ),
    # training and compression
    "not_finite": Message(
        "Training stopped at step {step}: the {what} is not finite{where}{kept}",
        "lower the learning rate (now {learning_rate}), clip gradients (clip_norm), or look for bad rows in the data",
    ),
    "loss_rose": Message(
        "Training stopped at step {step}: the loss rose to {loss:.4g} out of nowhere, and leaving batches out did not help",
        "lower the learning rate, clip gradients (clip_norm), or look for bad rows; rescue=False goes on with any finite loss",
    ),
    "bad_checkpoint": Message(
        "The checkpoint does not fit this run: {detail}",
        "resume with the model, optimizer and options that it was made with, or begin anew in another folder",
    ),
    "bad_start": Message(
        "Training cannot start from version {version}: {detail}",
        "build the model as it was when the version was published, or name the parts that start so: "
        "start=argosy.Start(version, parts=[...])",
    ),
    "bad_program": Message("Training program {target} cannot be used: {detail}"),
    "bad_space": Message(
        "The space{parameter} cannot be searched: {detail}",
        "values are LOW:HIGH, LOW:HIGH:log, LOW:HIGH:STEP or options with commas between: lr=1e-4:0.1:log, act=relu,gelu",
    ),
    "method_unfit": Message("Method {method} cannot search this: {detail}"),
    "search_differs": Message(
        "Search {name!r} was begun with other settings: {detail}",
        "give the same ones to go on with it, begin it anew (--restart, restart=True), or name another search (--name, name=)",
    ),
    "search_active": Message("Another process searches {name!r} now", "wait for it, or name another search (--name, name=)"),
    "search_closed": Message("Search {name!r} was closed: nothing is asked or told any more", "stay in its `with` block"),
    "search_over": Message("Search {name!r} has nothing left to try: {detail}"),
    "search_waits": Message(
        "Trial {number} depends on the generation before it, of which these still run: {running}", "tell what came of them first"
    ),
    "bad_journal": Message(
        "The journal of search {name!r} cannot be read: {detail}",
        "begin it anew (--restart, restart=True), or name another search (--name, name=)",
    ),
    "trial_over": Message("Trial {number} of search {name!r} has ended already: it is {state}"),
    "bad_told": Message(
        "Trial {number} is told {got}, expected {expected}", "a trial that came to no value is told by `fail`, with the reason"
    ),
    "trial_refused": Message("The program cannot be searched: {detail}"),
    "search_empty": Message(
        "No trial of search {name!r} can be published: {detail}", "nothing was published; all trials are kept in {folder}"
    ),
    "checkpoints_exist": Message(
        "Folder {folder} holds checkpoints of a run that was begun before",
        "go on with it (--resume, resume=True), begin it anew (--restart, resume='restart'), or name another folder",
    ),
    "run_active": Message("Another run writes its checkpoints to {folder} now", "wait for it, or name another folder"),
    "bad_data": Message("The data is not usable: {detail}"),
    "bad_file": Message("File {path} cannot be used as data: {detail}"),
    "data_changed": Message(
        "File {path} changed while it was used as data: {detail}",
        "let nothing write to the files of a data set that is open, and open it again",
    ),
    "schema_differs": Message(
        "File {path} differs from {first} in column {column!r}: got {got}, expected {expected}",
        "bring all files to one schema, or name those that are meant; of CSV and JSON lines, schema={{...}} says the types",
    ),
    "bad_rows": Message(
        "{count} rows cannot be used, at most {limit} may be left out; the first: {first}",
        "mend them, or have more left out: max_bad_rows",
    ),
    "bad_loss": Message(
        "The loss cannot be made small: it is {got}, expected {expected}",
        "compute it from the model's outputs by the framework's own operators, and reduce it, such as by .mean()",
    ),
    "export_differs": Message(
        "The exported model answers differently from the trained one on {rows} rows: largest difference {got:.3g}, "
        "allowed {allowed:.3g}"
    ),
    "export_failed": Message(
        "The model cannot be exported to ONNX: {detail}",
        "use operators that ONNX has, and take sizes from the input's shape, not from constants",
    ),
    "save_failed": Message(
        "The model cannot be saved for a runtime of its framework: {detail}",
        "make it of the framework's own layers, or of what ONNX has operators for",
    ),
    "loss_too_large": Message(
        "A loss of {got:g} of {metric} would be all of it, or more: the metric is 1 at best",
        "a loss is a part of 1, not of 100: 0.05 allows 5 points of a hundred",
    ),
    "idle_option": Message("{option} would do nothing {where}", "{instead}"),
    "compression_active": Message(
        "Another process looks for the same compression of {reference} now",
        "wait for it, which publishes what it finds; with another objective, guard, search or other rows it is another one",
    ),
    "bad_kept_search": Message(
        "What an earlier search for the compression of {reference} has kept cannot be read: {detail}",
        "remove the folder {folder}, and call again: it begins anew",
    ),
    "nothing_to_compress": Message("Compression method {method} finds nothing to work on in the model: it needs {what}"),
    "own_training": Message(
        "{model} says by {methods} how it is trained, which `train` does not call: it would be trained in another way",
        "train it by its own loop and publish it by argosy.publish; or give `train` a model without them, which {framework} "
        "runs forward, and the loss as `loss`",
    ),
    "not_compressible": Message(
        "Model {name!r} version {version} is of the runtime {runtime}, and compression works on files of ONNX, OpenVINO, Keras "
        "and torch",
        "publish the network as ONNX (argosy.publish, or argosy import of a file that becomes it), and compress that version; "
        "teach a student of yours (--student FILE.py:FUNCTION); or see what argosy tune finds for this one",
    ),
    "already_compressed": Message(
        "Model {name!r} version {version} is the result of {method} already, and is not compressed again",
        "compress its parent, {parent}",
    ),
    "guard_failed": Message(
        "Compression lost too much: {metric} went from {before:.4f} to {after:.4f} on {basis}, "
        "by {loss:.4g}, allowed {allowed:g}",
        "nothing was published; it is judged by {metric}, as {reason}; try calibration rows that are more like what will be "
        "asked, or a larger guard",
    ),
    "answers_ruined": Message(
        "Compression ruined the answers: {ruin}; {metric} went from {before:.4f} to {after:.4f} on {basis}",
        "nothing was published; try calibration rows that are more like what will be asked, or another method",
    ),
    "other_shape": Message(
        "What {engine} made gives answers of another shape: output {output!r} of {kind} {place} has {got}, of the original "
        "{expected}",
        "nothing was published: this recipe does not suit the version on this machine; take another, or leave the method out",
    ),
    "nothing_found": Message(
        "No way to compress this version improves its {objective} within a loss of {max_loss:g}: {tried}{left}",
        "nothing was published; allow a larger loss, or where not all was tried more time and recipes, give more rows, or "
        "another objective",
    ),
    "too_few_rows": Message(
        "{metric} on {got} rows says nothing finer than one row in {got}; a loss of {max_loss:g} takes {needed} rows at least",
        "give more evaluation rows (equal ones count once), allow a larger loss, or take a metric that compares numbers, such as "
        "fidelity",
    ),
    "step_unfit": Message("Compression method {method} does not work on artifacts of the runtime {runtime}, it takes {expected}"),
    "step_failed": Message("Compression method {method} cannot do this model: {detail}"),
    "too_few_training_rows": Message(
        "Compression method {method} trains, which takes at least {needed} rows to train on, and there are {got}",
        "give more rows as --data, three quarters of which may be judged on, or as --calibration, which are trained on as well",
    ),
    "needs_student": Message(
        "The recipe teaches the student {student}, and the one that is given is {got}",
        "argosy compress takes the program that makes it as --student FILE.py:FUNCTION, argosy.compress the model as student",
    ),
    "student_unfit": Message(
        "The student {student} cannot take the version's place: {detail}", "a student takes and gives what the version does"
    ),
    "no_gain": Message(
        "Compression {method} of {reference} does not make it smaller, nor faster without a loss: {found}",
        "nothing was published; to publish it all the same: needs_gain=False, on the command line --without-gain",
    ),
    "needs_calibration": Message(
        "Compression method {method} needs {what} of model {name!r}, and none was given",
        "argosy compress takes --calibration FILE and --eval FILE; the models of recipes bring their own",
    ),
    # requests
    "no_path": Message("No {method} {path} here", "the inference API is under /v2, OpenAI's under /v1"),
    "method_not_allowed": Message(
        "Method {method} is not allowed for {path}", "inference and the repository are POST, everything else is GET"
    ),
    "bad_http": Message("The request is not valid HTTP/1.1: {detail}"),
    "bad_compression": Message("The compressed body cannot be unpacked: {detail}"),
    "bad_json": Message("The body is not valid: {detail}"),
    "body_too_large": Message("The body has more than {limit} bytes", "send fewer rows a request, or raise max_body_bytes"),
    "unknown_deployment": Message("Unknown model {name!r}; deployed: {known}", "argosy deploy NAME@VERSION makes one"),
    "version_not_served": Message(
        "Version {version} of model {name!r} is not served now; served: {known}",
        "argosy deploy MODEL@VERSION --as OTHER serves another version beside it",
    ),
    "missing_input": Message(
        "Model {model!r} version {version} needs the input {tensor!r}, which is not in the request; got: {got}"
    ),
    "mixed_inputs": Message(
        "The request to model {model!r} version {version} holds tensors ({got}) beside what they are made of",
        "send all tensors, or instead: {expected}",
    ),
    "bad_row": Message("Model {model!r} version {version} cannot take this request: {detail}"),
    "bad_preprocess": Message("The preprocessing cannot be published: {detail}"),
    "unknown_input": Message("Model {model!r} version {version} has no input {tensor!r}; it has: {known}"),
    "unknown_output": Message("Model {model!r} version {version} has no output {tensor!r}; it has: {known}"),
    "duplicate_tensor": Message("Tensor {tensor!r} stands twice in the request"),
    "datatype_mismatch": Message("Input {tensor!r} of model {model!r} version {version} has datatype {got}, expected {expected}"),
    "needs_text": Message(
        "Input {tensor!r} has datatype BYTES, and one of its elements is {got}, expected text",
        "a row of a table is one text: a line of CSV, or its JSON object as a string, json.dumps(row)",
    ),
    "shape_mismatch": Message("Input {tensor!r} of model {model!r} version {version} has shape {got}, expected {expected}"),
    "rows_differ": Message("The inputs of model {model!r} version {version} have different numbers of rows: {got}"),
    "too_many_rows": Message("The request has {got} rows, at most {limit} are taken at once", "split it into several requests"),
    "no_rows": Message("The request has no rows"),
    "size_mismatch": Message("Input {tensor!r} has {got} elements of data, expected {expected} for shape {shape}"),
    "bytes_mismatch": Message("Input {tensor!r} has {got} bytes of data, expected {expected} for shape {shape} of {datatype}"),
    "too_many_elements": Message(
        "Input {tensor!r} has {got} elements of {datatype}, at most {limit} are taken at once", "split it into several requests"
    ),
    "not_small": Message("Of a large request all but the tensor data must fit in {limit} bytes and {num_fields} fields"),
    "typed_too_large": Message(
        "The typed contents of the request have more than {limit} bytes", "send large tensors in raw_input_contents"
    ),
    "raw_count": Message(
        "The request has {got} raw_input_contents for {expected} inputs", "raw contents stand for all inputs or none"
    ),
    "mixed_contents": Message("Input {tensor!r} has both contents and raw_input_contents", "use one of them for all inputs"),
    "wrong_contents": Message("Input {tensor!r} of datatype {datatype} has values in {got}, expected {expected}"),
    "no_typed_contents": Message(
        "Input {tensor!r} has datatype {datatype}, which no typed contents hold", "use raw_input_contents"
    ),
    "bad_grpc": Message("The request is not valid gRPC: {detail}"),
    "bad_value": Message("Input {tensor!r} holds a value that {datatype} cannot: {detail}"),
    "bad_parameter": Message("Parameter `{name}` is {got!r}, expected {expected}"),
    "no_raw_binary": Message(
        "A body without JSON has to be the only input, one row with at most one free dimension, or one element of BYTES; "
        "model {model!r} version {version} has {detail}",
        "send JSON before the tensors, and its length in Inference-Header-Content-Length",
    ),
    "no_raw": Message(
        "Model {model!r} version {version} has no raw endpoint",
        "a Python model whose class has a method raw(self, request) offers one",
    ),
    "only_raw": Message("Model {model!r} version {version} has no tensors", "its API is its own, under /v2/models/{model}/raw"),
    "bad_raw_answer": Message("Model {model!r} version {version} gave an answer that cannot be sent: {detail}"),
    "lost_twice": Message(
        "Worker {worker} of model {model!r} version {version} died while it answered the request, as one did before it",
        "the request may be at fault: do not send it again",
    ),
    "not_finite_output": Message(
        "Output {tensor!r} of model {model!r} version {version} holds a value that JSON cannot (NaN or infinity)",
        "ask for binary outputs, which are exact",
    ),
    "needs_raw": Message("Output {tensor!r} has datatype {datatype}, which JSON cannot hold", "ask for binary outputs"),
    "queue_full": Message(
        "The queue of model {model!r} is full: {got} rows wait, at most {limit} may", "try again in {retry_s:.1f} s"
    ),
    "deadline_hopeless": Message(
        "The request cannot be answered within its {timeout_s:.3f} s: {got} rows wait before it", "try again in {retry_s:.1f} s"
    ),
    "deadline_short": Message(
        "The request's deadline of {timeout_s:.3f} s leaves it {left_s:.3f} s, and its model takes about {service_s:.3f} s",
        "give it more time",
    ),
    "deadline_passed": Message("The deadline of {timeout_s:.3f} s passed before the answer was there"),
    "no_replica": Message("Model {model!r} has no replica that is ready", "argosy status says why"),
    "no_room": Message(
        "The server has no room to hand this request to model {model!r} version {version}: {detail}",
        "the limits of descriptors and of memory say what there is; fewer connections (max_connections) need fewer descriptors",
    ),
    "starting": Message("The server is starting"),
    "draining": Message("The server is stopping"),
    "model_failed": Message("Model {model!r} version {version} failed on this request: {detail}"),
    "poison": Message(
        "The request killed worker {worker} of model {model!r} version {version} when it ran alone, and was refused: {detail}",
        "the request is at fault, not the load; do not send it again",
    ),
    "not_repeatable": Message(
        "Worker {worker} of model {model!r} version {version} died while it ran the request, "
        "and the version is not declared repeatable",
        "the request may have run; send it again only if that is safe",
    ),
    "unauthorized": Message(
        "The admin API needs the header Authorization: Bearer TOKEN", "the token stands in ARGOSY_HOME/run/serve.json"
    ),
    "control_away": Message(
        "The control process is being started again, and nothing can be loaded or unloaded meanwhile",
        "what was asked before may have been recorded: the repository's index shows what is there",
    ),
    "too_many_errands": Message("More than {limit} loads and unloads wait already", "try again when some of them have ended"),
    "url_too_long": Message("The URL is longer than {limit} bytes"),
    "headers_too_large": Message("The request has more than {num_headers} headers, or more than {limit} bytes of them"),
    "unimplemented": Message("Method {method} is not offered"),
    "internal": Message("Internal error: {detail}"),
    "bad_message": Message("A message between processes is refused: {detail}"),
    "message_too_large": Message("A message `{op}` of {got} bytes is not sent to another process, at most {limit} bytes are"),
    "spec_too_large": Message(
        "What workers of deployment {name!r} would be told of it takes {got} bytes, at most {limit} bytes can be told",
        "publish the version with fewer tensors, or with shorter names",
    ),
    # clients
    "server_said": Message("{text}", "{hint}"),
    "no_connection": Message(
        "No answer from {url}: {detail}", "start a server with: argosy serve; or give the URL of one that runs"
    ),
    "bad_answer": Message(
        "The answer of {url} is not V2: {detail}", "give the URL of a server that speaks the V2 inference protocol"
    ),
    "no_test_model": Message(
        "The server at {url} has no model {got} to be tested with",
        "give it those of argosy conformance --write-models FOLDER, or name one that it has with --model",
    ),
    "bad_inputs": Message("File {path} does not hold inputs: {detail}"),
    "needs_names": Message("Model {model!r} has {got} inputs: {known}", "give a dict of input name to array"),
    # deployments
    "no_server": Message("No server runs for this ARGOSY_HOME ({home})", "start one with: argosy serve"),
    "server_hidden": Message(
        "A server (process {pid}) runs for this ARGOSY_HOME ({home}), but {path}, which says where it is, is missing or damaged",
        "the server writes it anew within 10 s, if the disk takes it: try again then",
    ),
    "server_running": Message(
        "A server (process {pid}) runs already for this ARGOSY_HOME ({home})",
        "argosy restart runs it anew, argosy stop ends it; a second one needs an ARGOSY_HOME of its own",
    ),
    "server_failed": Message("The server did not start: {detail}"),
    "stop_failed": Message(
        "The server (process {pid}) {detail}",
        "it ends when the requests under way are answered; a second argosy stop ends it at once",
    ),
    "restart_other": Message(
        "A restart keeps a server's address, ports and number of fronts: {setting} would become {got!r}, and is {expected!r}",
        "stop the server and start it again to change that",
    ),
    "restart_failed": Message(
        "The server (process {pid}) was told to restart, and its successor does not answer",
        "it says why on its standard error; start it again with: argosy serve",
    ),
    "restart_refused": Message(
        "The server (process {pid}) cannot be restarted, and goes on as it was: {detail}",
        "mend what it says, and try again",
    ),
    "no_rollback": Message("Deployment {name!r} never held another version, so there is nothing to roll back to"),
    "signature_changes": Message(
        "Version {version} has another signature than {live}, which is live as {name!r}: {differences}",
        "clients of the live version would fail; if they are ready, say so with --allow-signature-change",
    ),
    "rollout_failed": Message("Rollout of {name!r} to version {version} failed at step {step}: {detail}"),
    "does_not_fit": Message("Version {version} of {name!r} needs about {needed} of memory, {free} of the limit {limit} are free"),
    "golden_differs": Message(
        "Version {version} of {name!r} does not answer its golden examples as recorded: output {tensor!r} {detail}"
    ),
    "golden_rounded": Message(
        "Version {version} of {name!r} loses too much in bfloat16: to its golden examples "
        "output {tensor!r} has cosine {got:.6f}, expected at least {allowed:.6f}",
        "deploy it with --precision float32",
    ),
    # tuning
    "tune_while_serving": Message(
        "A server (process {pid}) runs for this ARGOSY_HOME ({home}): it and the measurements would slow each other down",
        "stop it, or tune beside it with --share",
    ),
    "engine_failed": Message("{engine} cannot run this version: {detail}"),
    "load_failed": Message("The client that measures the servers failed: {detail}"),
    "arrivals_missed": Message(
        "Requests for {name!r} came faster than they could be recorded: {got} are missing",
        "record fewer at a time: other work on this machine may have kept the recorder from asking",
    ),
    "bad_trace": Message(
        "Line {line} of trace {path} cannot be used: {detail}",
        'expected JSON lines in the order of arrival, such as {{"at_s": 0.013, "rows": 1, "length": 17}}',
    ),
}


class ArgosyError(Exception):
    """The root. `status` is the HTTP status, `grpc_code` the gRPC code that the fault answers with."""

    status: int = 500
    grpc_code: GrpcCode = GrpcCode.INTERNAL

    def __init__(self, key: str, *, retry_after_s: float | None = None, **fields: object) -> None:
        message = MESSAGES[key]
        self.key = key
        self.fields = fields
        self.retry_after_s = retry_after_s
        self.message = message.text.format(**fields)
        self.hint = message.hint.format(**fields)
        super().__init__(f"{self.message}\nhint: {self.hint}" if self.hint else self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let one process give it to another; what is no text or number in its fields, as text."""
        plain = {
            name: value if isinstance(value, str | int | float | None) else str(value) for name, value in self.fields.items()
        }
        return _restore, (type(self), self.key, self.retry_after_s, plain)


class RequestError(ArgosyError):
    """The caller's fault: the same request fails again."""

    status = 400
    grpc_code = GrpcCode.INVALID_ARGUMENT


class InputError(RequestError):
    """A body, tensor, name or option is wrong."""


class AuthError(RequestError):
    """No token, or a wrong one."""

    status = 401
    grpc_code = GrpcCode.UNAUTHENTICATED


class NotAllowedError(RequestError):
    """Needs an opt-in that was not given."""

    status = 403
    grpc_code = GrpcCode.PERMISSION_DENIED


class NotFoundError(RequestError):
    """No such model, version, alias, deployment or path."""

    status = 404
    grpc_code = GrpcCode.NOT_FOUND


class ConflictError(RequestError):
    """The present state forbids it."""

    status = 409
    grpc_code = GrpcCode.FAILED_PRECONDITION


class TooLargeError(RequestError):
    """A body or a tensor is over its limit."""

    status = 413
    grpc_code = GrpcCode.RESOURCE_EXHAUSTED


class PoisonError(RequestError):
    """The request kills the workers that run it."""

    status = 422
    grpc_code = GrpcCode.FAILED_PRECONDITION


class LoadError(ArgosyError):
    """The server cannot take the request now; a later try may succeed."""

    status = 503
    grpc_code = GrpcCode.UNAVAILABLE


class OverloadedError(LoadError):
    """A queue is full, or the deadline cannot be met."""

    status = 429
    grpc_code = GrpcCode.RESOURCE_EXHAUSTED


class UnavailableError(LoadError):
    """No replica is ready."""


class DeadlineError(LoadError):
    """The deadline passed before the answer was there."""

    status = 504
    grpc_code = GrpcCode.DEADLINE_EXCEEDED


class FaultError(ArgosyError):
    """A fault of the server, the model or the machine."""


class MessageError(FaultError):
    """What one process of a server says to another is no message, or does not fit into one."""


class ModelError(FaultError):
    """The model's own code failed on this request."""


class RegistryError(FaultError):
    """A registry cannot be reached, refuses, or sends something else than it should."""

    status = 502
    grpc_code = GrpcCode.UNAVAILABLE


class StoreError(FaultError):
    """A file of the store is missing or damaged."""


def _restore(kind: type[ArgosyError], key: str, retry_after_s: float | None, fields: dict[str, Any]) -> ArgosyError:
    return kind(key, retry_after_s=retry_after_s, **fields)


def list_choices(choices: Iterable[object], limit: int = 20) -> str:
    """Render known names for a message: sorted, cut after `limit`, `none` when there are none."""
    names = sorted(str(choice) for choice in choices)
    if not names:
        return "none"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
