# Read by the jobs here.
#
# Lines that a site needs, such as `module load cuda`, go to slurm/site.sh, which is yours and read
# if it is there. VENV=FOLDER or CONDA_ENV=NAME is the environment that a job enters; without them it
# has the one in which it was submitted.

enter_environment() {
  set +u # scripts of others read what is not set
  # shellcheck disable=SC1091
  [ ! -f slurm/site.sh ] || . slurm/site.sh
  if [ -n "${VENV:-}" ]; then
    . "$VENV/bin/activate"
  elif [ -n "${CONDA_ENV:-}" ]; then
    eval "$(conda shell.bash hook)"
    conda activate "$CONDA_ENV"
  fi
  set -u
}

# Called first: outside of a job, `bash slurm/JOB.slurm --nodes=4 --constraint=a100 ARGUMENTS`
# submits the job. Options before the first argument are those of sbatch; with --print among them the
# command and the script are shown instead.
submit_unless_in_job() {
  local job=$1 options=() print=
  shift
  [ -z "${SLURM_JOB_ID:-}" ] || return 0
  while [[ ${1:-} == --* ]]; do
    if [ "$1" = --print ]; then print=1; else options+=("$1"); fi
    shift
  done
  if [ -n "$print" ]; then
    echo "sbatch ${options[*]@Q} ${job@Q} ${*@Q}"
    cat "$job"
  else
    sbatch "${options[@]}" "$job" "$@"
  fi
  exit
}

# `guarded COMMAND ...` runs a command of a job that Slurm may end. The signal
# before the time limit (#SBATCH --signal=B:USR1@...) becomes a SIGTERM for the command, which saves
# and leaves; then the job is queued again, to go on from there. Of scancel, a SIGTERM, the same
# without the queue.

asked=
trap 'asked=USR1; pass_on' USR1
trap 'asked=TERM; pass_on' TERM

pass_on() {
  [ -z "${child:-}" ] || kill -TERM "$child" 2>/dev/null || true
}

guarded() {
  local code=0
  [ -z "$asked" ] || leave
  "$@" &
  child=$!
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal has ended the wait and not the command
    code=0
    wait "$child" || code=$?
  done
  child=
  [ -z "$asked" ] || leave
  return "$code"
}

leave() {
  echo "SIG$asked: what was running has saved and left"
  [ "$asked" = USR1 ] || exit 143
  [ -z "${SLURM_JOB_ID:-}" ] || scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
